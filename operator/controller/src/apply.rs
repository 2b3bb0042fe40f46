//! Step 4, the only writes but the report: carries out a plan, in its order, and chooses nothing.
//!
//! An object that exists is overwritten only with its UID as precondition; one that did not exist is created only if it
//! still does not, so that somebody else's, made in the meantime, is never taken.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use keystore_client::Error;
use keystore_operator_core::children::{Kind, Write};
use keystore_operator_core::hold::{Hold, HoldReason};
use keystore_operator_core::names::{FIELD_MANAGER, Names};
use keystore_operator_core::observed::Observed;
use keystore_operator_core::plan::{NodeStep, Plan};
use keystore_operator_core::scaling::Proposal;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use tracing::{info, warn};

use crate::context::Context;
use crate::kinds::api;
use crate::leadership::NotLeading;
use crate::nodes::{NodeAddress, NodeError};

/// A version that no object has (the store's first belongs to none), so that an apply creates or is refused with 409,
/// and the next look decides. A POST would record our fields as those of an update, and a later apply that drops one of
/// them would not remove it.
const ABSENT: &str = "1";

#[derive(Debug, Error)]
pub(crate) enum ApplyError {
    /// The objects written before this one stay.
    #[error("cannot apply {kind} {name}")]
    Apply {
        kind: Kind,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("cannot delete {kind} {name}")]
    Delete {
        kind: &'static str,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// The nodes asked before this one have accepted; the same layout is sent again.
    #[error("cannot give {pod} its first layout")]
    Init {
        pod: String,
        #[source]
        source: NodeError,
    },
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
}

impl ApplyError {
    /// A refusal that no retry will change: what a person has to know.
    pub(crate) fn rejection(&self) -> Option<Hold> {
        let refused = |what: &dyn std::fmt::Display, source: &kube::Error| {
            let kube::Error::Api(status) = source else { return None };
            let is_final = matches!(status.code, 403 | 422) && !is_namespace_terminating(source);
            is_final.then(|| format!("the API server refuses {what}: {}", status.message))
        };
        let message = match self {
            Self::Apply { kind, name, source } => refused(&format_args!("{kind} {name}"), source)?,
            Self::Delete { kind, name, source } => refused(&format_args!("to delete {kind} {name}"), source)?,
            Self::Init { pod, source: NodeError::Call { source: Error::Refused(detail), .. } } => {
                format!("{pod} refuses its first layout: {}", detail.message)
            }
            Self::Init { .. } | Self::NotLeading(_) => return None,
        };
        Some(Hold { reason: HoldReason::Rejected, message })
    }

    /// Nothing more is to be done, whatever it is.
    fn ends_all(&self) -> bool {
        matches!(self, Self::NotLeading(_)) || self.is_namespace_terminating()
    }

    pub(crate) fn is_namespace_terminating(&self) -> bool {
        match self {
            Self::Apply { source, .. } | Self::Delete { source, .. } => is_namespace_terminating(source),
            Self::Init { .. } | Self::NotLeading(_) => false,
        }
    }
}

/// What came of a plan that was carried out.
#[derive(Debug)]
pub(crate) struct Applied {
    /// Why the proposed layout is not in force, as far as anybody knows. It is not a failure: gates open in their own
    /// time, and the next look sees what was decided.
    pub(crate) refusal: Option<String>,
    pub(crate) outcome: Result<(), ApplyError>,
}

/// Nothing can be made in a namespace that is going away, and nothing has to.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    status.code == 403 && causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// What the nodes decide does not wait for what the API server refuses, unless it builds on that.
pub(crate) async fn apply(context: &Context, names: &Names, observed: &Observed, plan: &Plan) -> Applied {
    let written = write_children(context, names, plan).await;
    match (written, &plan.node_step) {
        (Ok(()), step) => {
            let asked = ask_nodes(context, names, observed, step).await;
            let (refusal, outcome) =
                asked.map_or_else(|error| (None, Err(error)), |refusal| (refusal, Ok(())));
            Applied { refusal, outcome }
        }
        (Err(error), NodeStep::Propose(proposal)) if !proposal.needs_writes && !error.ends_all() => {
            let refusal = match ask_nodes(context, names, observed, &plan.node_step).await {
                Ok(refusal) => refusal,
                // What was refused first is what is reported, and both are tried again.
                Err(also) => {
                    warn!(error = %also, "the nodes cannot be asked either");
                    None
                }
            };
            Applied { refusal, outcome: Err(error) }
        }
        (Err(error), _) => Applied { refusal: None, outcome: Err(error) },
    }
}

async fn write_children(context: &Context, names: &Names, plan: &Plan) -> Result<(), ApplyError> {
    for write in &plan.writes {
        match write {
            Write::Apply { kind, name, object, live_uid } => {
                apply_object(context, names, (*kind, name), (object, live_uid.as_deref())).await?;
            }
            Write::DeleteConfigMap { name, uid } => delete::<ConfigMap>(context, names, name, uid).await?,
            Write::DeletePod { name, uid } => delete::<Pod>(context, names, name, uid).await?,
        }
    }
    Ok(())
}

/// Returns why a proposed layout is not in force.
async fn ask_nodes(
    context: &Context,
    names: &Names,
    observed: &Observed,
    step: &NodeStep,
) -> Result<Option<String>, ApplyError> {
    match step {
        // The report writes it, before any node learns of it.
        NodeStep::Nothing | NodeStep::RecordCluster(_) => Ok(None),
        NodeStep::Init { layout, ordinals } => {
            for ordinal in ordinals {
                let pod = names.pod(*ordinal);
                context.leadership.check()?;
                let sent = match NodeAddress::find(names, &observed.pods, *ordinal) {
                    Ok(address) => context.nodes.init(&address, layout).await,
                    Err(error) => Err(error),
                };
                sent.map_err(|source| ApplyError::Init { pod: pod.clone(), source })?;
                info!(pod, cluster = %layout.cluster, epoch = layout.epoch.0, "node accepted its first layout");
            }
            Ok(None)
        }
        NodeStep::Propose(proposal) => match NodeAddress::find(names, &observed.pods, proposal.ordinal) {
            Ok(address) => propose(context, &address, proposal).await,
            Err(error) => Ok(Some(error.to_string())),
        },
    }
}

async fn propose(
    context: &Context,
    address: &NodeAddress,
    proposal: &Proposal,
) -> Result<Option<String>, ApplyError> {
    let Proposal { expected, layout, ordinal: _, needs_writes: _ } = proposal;
    context.leadership.check()?;
    let (pod, epoch, is_joint) = (&address.pod, layout.epoch.0, layout.is_joint());
    let refusal = match context.nodes.propose(address, *expected, layout).await {
        Ok(decided) if decided == *layout => {
            info!(pod, epoch, is_joint, members = layout.members.len(), "layout decided");
            None
        }
        Ok(decided) => {
            info!(pod, epoch, decided = decided.epoch.0, "another layout was decided");
            Some(format!("another layout was decided, epoch {}", decided.epoch))
        }
        Err(error) => {
            info!(pod, epoch, is_joint, error = &error as &dyn std::error::Error, "layout not decided yet");
            Some(match error {
                NodeError::Call { source, .. } => source.detail().message.clone(),
                NodeError::Stranger { .. } | NodeError::Nowhere { .. } => error.to_string(),
            })
        }
    };
    Ok(refusal)
}

async fn apply_object(
    context: &Context,
    names: &Names,
    (kind, name): (Kind, &str),
    (object, live_uid): (&Value, Option<&str>),
) -> Result<(), ApplyError> {
    let mut object = object.clone();
    let mut params = PatchParams::apply(FIELD_MANAGER);
    let (precondition, value) = live_uid.map_or(("resourceVersion", ABSENT), |uid| ("uid", uid));
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(precondition.to_owned(), Value::from(value));
    }
    if live_uid.is_some() {
        params = params.force();
    }
    context.metrics.writing(kind.as_str());
    let applied =
        api(&context.client, kind, &names.namespace).patch(name, &params, &Patch::Apply(&object)).await;
    applied.map_err(|source| ApplyError::Apply { kind, name: name.to_owned(), source: Box::new(source) })?;
    info!(kind = kind.as_str(), name, existed = live_uid.is_some(), "object applied");
    Ok(())
}

async fn delete<K>(context: &Context, names: &Names, name: &str, uid: &str) -> Result<(), ApplyError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + k8s_openapi::Resource
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    context.metrics.writing(K::KIND);
    let api: Api<K> = Api::namespaced(context.client.clone(), &names.namespace);
    match api.delete(name, &params).await {
        Ok(_) => info!(kind = K::KIND, name, "object deleted"),
        // It is gone, or another one has its name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(source) => {
            let (kind, name) = (K::KIND, name.to_owned());
            return Err(ApplyError::Delete { kind, name, source: Box::new(source) });
        }
    }
    Ok(())
}
