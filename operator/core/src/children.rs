//! The children that are wanted beside those that live: what is written, and whose a name is.
//!
//! A live object is compared field by field with the wanted one, so that a cluster at rest is left alone; a name that
//! belongs to somebody else is found here, and what follows from that is for `hold` and `plan` to say.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keystore_crds::KeyStoreCluster;
use kube::Resource;
use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::build::{
    ConfigError, StatefulSetInput, build_budget, build_client_service, build_headless_service,
    build_service_account, build_stateful_set,
};
use crate::differ::{differs, stamp};
use crate::observed::Observed;
use crate::rollout::{Rollout, config_maps};
use crate::validate::ValidCluster;

#[derive(Debug, Error)]
pub enum ChildError {
    #[error("the configuration of the nodes cannot be built")]
    Config(#[from] ConfigError),
    #[error("a {kind} cannot be written as JSON")]
    Json {
        kind: Kind,
        #[source]
        source: serde_json::Error,
    },
}

/// The kinds of children, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    ServiceAccount,
    ConfigMap,
    Service,
    PodDisruptionBudget,
    StatefulSet,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceAccount => "ServiceAccount",
            Self::ConfigMap => "ConfigMap",
            Self::Service => "Service",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::StatefulSet => "StatefulSet",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One write to the API server.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Server-side apply: forced, with that UID as precondition, where the live object is ours; where there is none,
    /// only if there is still none.
    Apply { kind: Kind, name: String, object: Value, live_uid: Option<String> },
    /// With the UID as precondition.
    DeleteConfigMap { name: String, uid: String },
    /// With the UID as precondition; the StatefulSet makes it anew, from its present template.
    DeletePod { name: String, uid: String },
}

/// A wanted child beside the live object of that name.
pub(crate) struct Wanted {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    object: Value,
}

pub(crate) fn wanted_children(
    valid: &ValidCluster,
    config_map: &ConfigMap,
    rollout: Rollout,
    replicas: u32,
) -> Result<Vec<Wanted>, ChildError> {
    let Rollout { template, template_hash, spec_hash, pending } = rollout;
    let stateful_set =
        build_stateful_set(valid, StatefulSetInput { replicas, template, template_hash, spec_hash });
    let mut wanted = vec![wanted(Kind::ServiceAccount, &build_service_account(valid))?];
    // While an update waits, the live template names an earlier configuration.
    if pending.is_none() {
        wanted.push(self::wanted(Kind::ConfigMap, config_map)?);
    }
    wanted.extend([
        self::wanted(Kind::Service, &build_headless_service(valid))?,
        self::wanted(Kind::Service, &build_client_service(valid))?,
        self::wanted(Kind::PodDisruptionBudget, &build_budget(valid))?,
        self::wanted(Kind::StatefulSet, &stateful_set)?,
    ]);
    Ok(wanted)
}

fn wanted<K: Resource + Serialize>(kind: Kind, object: &K) -> Result<Wanted, ChildError> {
    let mut value = serde_json::to_value(object).map_err(|source| ChildError::Json { kind, source })?;
    stamp(&mut value);
    Ok(Wanted { kind, name: object.meta().name.clone().unwrap_or_default(), object: value })
}

/// The live object that a wanted one would replace.
struct Live {
    metadata: ObjectMeta,
    object: Value,
}

fn live(wanted: &Wanted, observed: &Observed) -> Option<Live> {
    fn of<K: Resource + Serialize>(object: Option<&K>) -> Option<Live> {
        let object = object?;
        Some(Live { metadata: object.meta().clone(), object: json!(object) })
    }
    let children = &observed.children;
    let named = |live: &Live| live.metadata.name.as_deref() == Some(wanted.name.as_str());
    match wanted.kind {
        Kind::ServiceAccount => of(children.service_account.as_ref()),
        Kind::ConfigMap => of(children.config_maps.get(&wanted.name)),
        Kind::Service => of(children.headless_service.as_ref())
            .filter(named)
            .or_else(|| of(children.client_service.as_ref()).filter(named)),
        Kind::PodDisruptionBudget => of(children.budget.as_ref()),
        Kind::StatefulSet => of(children.stateful_set.as_ref()),
    }
}

pub(crate) fn plan_writes(wanted: Vec<Wanted>, observed: &Observed) -> Vec<Write> {
    let keep: Vec<String> =
        wanted.iter().filter(|w| w.kind == Kind::ConfigMap).map(|w| w.name.clone()).collect();
    let applies = wanted.into_iter().filter_map(|wanted| plan_apply(wanted, observed));
    applies.chain(plan_config_map_deletions(&keep, observed)).collect()
}

fn plan_apply(wanted: Wanted, observed: &Observed) -> Option<Write> {
    let live = live(&wanted, observed);
    // One that is on its way out is made anew once it is gone.
    let keeps = live.as_ref().is_some_and(|live| {
        live.metadata.deletion_timestamp.is_some() || !differs(&wanted.object, &live.object)
    });
    let Wanted { kind, name, object } = wanted;
    let live_uid = live.and_then(|live| live.metadata.uid);
    (!keeps).then_some(Write::Apply { kind, name, object, live_uid })
}

/// Configurations that neither the wanted nor the live template nor a revision names.
fn plan_config_map_deletions(keep: &[String], observed: &Observed) -> Vec<Write> {
    let children = &observed.children;
    // Without the StatefulSet one cannot tell what its pods, if any still run, have mounted.
    let Some(template) = children.stateful_set.as_ref().and_then(|set| Some(&set.spec.as_ref()?.template))
    else {
        return Vec::new();
    };
    let live = config_maps(template);
    let needed = |name: &str| {
        keep.iter().any(|kept| kept == name)
            || live.contains(&name)
            || children.config_maps_in_use.iter().any(|used| used == name)
    };
    let stale = children.config_maps.iter().filter(|(name, _)| !needed(name));
    stale
        .filter_map(|(name, map)| {
            Some(Write::DeleteConfigMap { name: name.clone(), uid: map.metadata.uid.clone()? })
        })
        .collect()
}

/// A wanted child whose name is taken by an object that belongs to somebody else.
pub(crate) fn find_taken<'a>(
    valid: &ValidCluster,
    observed: &Observed,
    wanted: &'a [Wanted],
) -> Option<&'a Wanted> {
    wanted.iter().find(|wanted| {
        live(wanted, observed).is_some_and(|live| match owner(&live.metadata) {
            None => true,
            Some(owner) => owner.uid != valid.uid && !is_predecessor(valid, owner),
        })
    })
}

/// A child of a deleted resource of the same name: Kubernetes collects it, and then its name is free.
pub(crate) fn find_leftover(valid: &ValidCluster, observed: &Observed, wanted: &[Wanted]) -> Option<String> {
    let leftover = wanted.iter().find(|wanted| {
        live(wanted, observed)
            .is_some_and(|live| owner(&live.metadata).is_some_and(|o| is_predecessor(valid, o)))
    })?;
    Some(format!("{} {}", leftover.kind, leftover.name))
}

fn owner(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.as_deref()?.iter().find(|owner| owner.controller == Some(true))
}

fn is_predecessor(valid: &ValidCluster, owner: &OwnerReference) -> bool {
    owner.kind == KeyStoreCluster::kind(&()) && owner.name == valid.names.cluster && owner.uid != valid.uid
}
