//! Step 1, the only reads: the resource itself, its children, its pods, and what the nodes say.
//!
//! Everything is read from the API server, not from a cache: a reconcile acts on what is. Children are read by
//! name, since an edited label must not hide one. A node that does not answer is no error, it is an answer.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use keystore_crds::KeyStoreCluster;
use keystore_operator_core::names::{CLUSTER_LABEL, Names};
use keystore_operator_core::observed::{
    Answer, Children, HeldLayout, Layout, NodeMode, Observed, expected_nodes,
};
use keystore_operator_core::plan::wanted_config_map;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use tracing::debug;

use crate::context::Context;
use crate::nodes::NodeAddress;

/// How many nodes of one cluster are asked at a time.
const ASKED_AT_ONCE: usize = 16;

#[derive(Debug, Error)]
pub(crate) enum ObserveError {
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
}

fn read_error(what: impl Into<String>) -> impl FnOnce(kube::Error) -> ObserveError {
    let what = what.into();
    |source| ObserveError::Read { what, source: Box::new(source) }
}

/// The resource as it is now, or `None` if it is gone.
pub(crate) async fn observe_cluster(
    context: &Context,
    names: &Names,
) -> Result<Option<KeyStoreCluster>, ObserveError> {
    get(context, names, &names.cluster).await
}

pub(crate) async fn observe(
    context: &Context,
    names: &Names,
    cluster: &KeyStoreCluster,
) -> Result<Observed, ObserveError> {
    let children = observe_children(context, names, cluster).await?;
    let mut observed = Observed { children, ..Observed::default() };
    let expected: BTreeSet<u32> = (0..expected_nodes(cluster, names, observed.live_replicas())).collect();
    observed.pods = observe_pods(context, names, &expected).await?;
    observed.answers = ask_nodes(context, names, &observed.pods, &expected).await;
    observed.layout = ask_layout(context, names, &observed).await;
    if let Some(held) = &observed.layout {
        let others = unasked(names, &held.layout, &observed);
        if !others.is_empty() {
            observed.pods.extend(observe_missing(context, names, &observed.pods, &others).await?);
            let answers = ask_nodes(context, names, &observed.pods, &others).await;
            observed.answers.extend(answers);
            observed.layout = ask_layout(context, names, &observed).await;
        }
    }
    // Zones are part of the layout: they matter for those who are to join it.
    let joins = observed.heard().any(|(_, answer)| answer.mode == NodeMode::Uninitialized);
    if joins || observed.layout.as_ref().is_none_or(|held| !held.decided) {
        observed.zones = observe_zones(context, cluster, &observed.pods).await?;
    }
    Ok(observed)
}

async fn get<K>(context: &Context, names: &Names, name: &str) -> Result<Option<K>, ObserveError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &names.namespace);
    api.get_opt(name).await.map_err(read_error(format!("{} {name}", K::kind(&()))))
}

async fn observe_children(
    context: &Context,
    names: &Names,
    cluster: &KeyStoreCluster,
) -> Result<Children, ObserveError> {
    let headless_name = names.headless_service();
    let (service_account, headless_service, client_service, budget, stateful_set, config_maps) = futures::try_join!(
        get(context, names, &names.cluster),
        get(context, names, &headless_name),
        get(context, names, &names.cluster),
        get(context, names, &names.cluster),
        get::<StatefulSet>(context, names, &names.cluster),
        observe_config_maps(context, names, cluster),
    )?;
    // Only where there are several is one perhaps no longer needed.
    let config_maps_in_use =
        if config_maps.len() > 1 { observe_revisions(context, names).await? } else { Vec::new() };
    Ok(Children {
        service_account,
        headless_service,
        client_service,
        budget,
        stateful_set,
        config_maps,
        config_maps_in_use,
    })
}

/// This cluster's own, by label, and the wanted one by name, whoever owns it.
async fn observe_config_maps(
    context: &Context,
    names: &Names,
    cluster: &KeyStoreCluster,
) -> Result<BTreeMap<String, ConfigMap>, ObserveError> {
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &names.namespace);
    let labelled = ListParams::default().labels(&format!("{CLUSTER_LABEL}={}", names.cluster));
    let listed = api.list(&labelled).await.map_err(read_error("the ConfigMaps"))?;
    let ours = listed.into_iter().filter(|map| {
        map.name_any().starts_with(&names.config_map_prefix())
            && map.owner_references().iter().any(|owner| Some(&owner.uid) == cluster.metadata.uid.as_ref())
    });
    let mut found: BTreeMap<_, _> = ours.map(|map| (map.name_any(), map)).collect();
    if let Some(wanted) =
        wanted_config_map(cluster, &context.node_image).filter(|name| !found.contains_key(name))
    {
        found.extend(get(context, names, &wanted).await?.map(|map| (wanted, map)));
    }
    Ok(found)
}

/// The ConfigMaps that the StatefulSet's revisions mount.
async fn observe_revisions(context: &Context, names: &Names) -> Result<Vec<String>, ObserveError> {
    let api: Api<ControllerRevision> = Api::namespaced(context.client.clone(), &names.namespace);
    let listed = api.list(&ListParams::default().labels(&names.selector_text())).await;
    let revisions = listed.map_err(read_error("the ControllerRevisions"))?;
    let volumes =
        |data: &Value| data.pointer("/spec/template/spec/volumes").and_then(Value::as_array).cloned();
    let mounted = revisions.into_iter().filter_map(|revision| volumes(&revision.data?.0)).flatten();
    let name = |volume: Value| volume.pointer("/configMap/name").and_then(Value::as_str).map(str::to_owned);
    Ok(mounted.filter_map(name).collect())
}

/// The pods of members, and those that exist, that nothing else led to.
fn unasked(names: &Names, layout: &Layout, observed: &Observed) -> BTreeSet<u32> {
    let of_members = layout.members.iter().filter_map(|member| names.ordinal(&member.name));
    let known = of_members.chain(observed.pods.keys().copied());
    known.filter(|ordinal| !observed.answers.contains_key(ordinal)).collect()
}

/// By label in one request, and whichever of the expected that did not find, by name.
async fn observe_pods(
    context: &Context,
    names: &Names,
    expected: &BTreeSet<u32>,
) -> Result<BTreeMap<u32, Pod>, ObserveError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &names.namespace);
    let labelled = ListParams::default().labels(&names.selector_text());
    let listed = api.list(&labelled).await.map_err(read_error("the pods"))?;
    let by_ordinal = |pod: Pod| Some((names.ordinal(&pod.name_any())?, pod));
    let mut pods: BTreeMap<_, _> = listed.into_iter().filter_map(by_ordinal).collect();
    pods.extend(observe_missing(context, names, &pods, expected).await?);
    Ok(pods)
}

/// Those of the expected pods that exist and are not among `known`.
async fn observe_missing(
    context: &Context,
    names: &Names,
    known: &BTreeMap<u32, Pod>,
    expected: &BTreeSet<u32>,
) -> Result<BTreeMap<u32, Pod>, ObserveError> {
    let mut found = BTreeMap::new();
    for ordinal in expected.iter().filter(|ordinal| !known.contains_key(ordinal)) {
        if let Some(pod) = get::<Pod>(context, names, &names.pod(*ordinal)).await? {
            found.insert(*ordinal, pod);
        }
    }
    Ok(found)
}

async fn ask_nodes(
    context: &Context,
    names: &Names,
    pods: &BTreeMap<u32, Pod>,
    expected: &BTreeSet<u32>,
) -> BTreeMap<u32, Answer> {
    let ask = |ordinal: u32| async move {
        let Ok(address) = NodeAddress::find(names, pods, ordinal) else {
            return (ordinal, Answer::Unreachable);
        };
        match context.nodes.get_status(&address).await {
            Ok(answer) => (ordinal, Answer::Here(answer)),
            Err(error) => {
                debug!(pod = address.pod, error = &error as &dyn std::error::Error, "node does not answer");
                (ordinal, Answer::Unreachable)
            }
        }
    };
    stream::iter(expected.iter().copied()).map(ask).buffer_unordered(ASKED_AT_ONCE).collect().await
}

/// The newest layout among those that the nodes hold, and in force if any node knows that. While a recovery is on its way,
/// what others still hold in force is not the newest.
async fn ask_layout(context: &Context, names: &Names, observed: &Observed) -> Option<HeldLayout> {
    let mut holders: Vec<_> = observed.heard().filter(|(_, answer)| answer.cluster.is_some()).collect();
    holders.sort_by_key(|(ordinal, answer)| (std::cmp::Reverse(answer.term()), *ordinal));
    let mut best: Option<HeldLayout> = None;
    for (ordinal, _) in holders {
        let Ok(address) = NodeAddress::find(names, &observed.pods, ordinal) else { continue };
        match context.nodes.get_layout(&address).await {
            Ok(Some(held)) if best.as_ref().is_some_and(|best| best.layout != held.layout) => break,
            Ok(Some(held)) if held.decided => return Some(held),
            Ok(held) => best = best.or(held),
            Err(error) => {
                debug!(
                    pod = address.pod,
                    error = &error as &dyn std::error::Error,
                    "node does not tell its layout"
                );
            }
        }
    }
    best
}

/// The zones of the Kubernetes nodes that the pods run on: metadata is all that is read of those.
async fn observe_zones(
    context: &Context,
    cluster: &KeyStoreCluster,
    pods: &BTreeMap<u32, Pod>,
) -> Result<BTreeMap<u32, String>, ObserveError> {
    let api: Api<PartialObjectMeta<Node>> = Api::all(context.client.clone());
    let machine = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let machines: BTreeSet<String> = pods.values().filter_map(machine).collect();
    let key = &cluster.spec.zone_topology_key;
    let zone = |machine: String| {
        let api = api.clone();
        async move {
            let node = api.get_metadata_opt(&machine).await.map_err(read_error(format!("Node {machine}")))?;
            let zone = node.and_then(|node| node.labels().get(key).cloned());
            Ok((machine, zone))
        }
    };
    let zones: BTreeMap<String, Option<String>> =
        stream::iter(machines).map(zone).buffer_unordered(ASKED_AT_ONCE).try_collect().await?;
    let zone_of = |pod: &Pod| zones.get(&machine(pod)?)?.clone();
    Ok(pods.iter().filter_map(|(ordinal, pod)| Some((*ordinal, zone_of(pod)?))).collect())
}
