//! Step 5: writes the status where it changed, and tells what changed as events and metrics.

use keystore_crds::{KeyStoreCluster, KeyStoreClusterStatus};
use keystore_operator_core::events::{EventDraft, plan_events};
use keystore_operator_core::names::{FIELD_MANAGER, Names};
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource};
use serde_json::{Value, json};
use thiserror::Error;
use tracing::{info, warn};

use crate::apply::is_namespace_terminating;
use crate::context::Context;

#[derive(Debug, Error)]
pub(crate) enum ReportError {
    #[error("cannot write the status of KeyStoreCluster {name}")]
    Write {
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
}

impl ReportError {
    /// The resource exists no longer.
    pub(crate) fn is_not_found(&self) -> bool {
        let Self::Write { source, .. } = self;
        matches!(source.as_ref(), kube::Error::Api(status) if status.code == 404)
    }
}

/// `cluster` is the resource that the status was made from: if it has changed since, nothing is written, so that a
/// cluster UUID is never recorded over another one.
pub(crate) async fn report(
    context: &Context,
    names: &Names,
    cluster: &KeyStoreCluster,
    status: &KeyStoreClusterStatus,
) -> Result<(), ReportError> {
    context.metrics.show_conditions(&names.namespace, &names.cluster, status);
    if cluster.status.as_ref() == Some(status) {
        return Ok(());
    }
    write_status(context, names, cluster, status)
        .await
        .map_err(|source| ReportError::Write { name: names.cluster.clone(), source: Box::new(source) })?;
    for draft in plan_events(cluster.status.as_ref(), status) {
        publish(context, cluster, draft).await;
    }
    Ok(())
}

async fn write_status(
    context: &Context,
    names: &Names,
    cluster: &KeyStoreCluster,
    status: &KeyStoreClusterStatus,
) -> Result<(), kube::Error> {
    let api: Api<KeyStoreCluster> = Api::namespaced(context.client.clone(), &names.namespace);
    let mut wanted = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
    let live = serde_json::to_value(&cluster.status).map_err(kube::Error::SerdeError)?;
    name_what_goes(&mut wanted, &live);
    let patch = json!({"metadata": {"resourceVersion": cluster.metadata.resource_version}, "status": wanted});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    context.metrics.writing("KeyStoreCluster");
    api.patch_status(&names.cluster, &params, &Patch::Merge(&patch)).await?;
    Ok(())
}

/// Whatever is there and not wanted is null in a merge. A server-side apply would leave what somebody else has written.
fn name_what_goes(wanted: &mut Value, live: &Value) {
    let (Some(wanted), Some(live)) = (wanted.as_object_mut(), live.as_object()) else { return };
    for (key, live) in live {
        match wanted.get_mut(key) {
            Some(wanted) => name_what_goes(wanted, live),
            None => drop(wanted.insert(key.clone(), Value::Null)),
        }
    }
}

/// An event that cannot be told is no reason to do anything again.
async fn publish(context: &Context, cluster: &KeyStoreCluster, draft: EventDraft) {
    let EventDraft { is_warning, reason, action, note } = draft;
    info!(reason, note, "condition changed");
    let event = Event {
        type_: if is_warning { EventType::Warning } else { EventType::Normal },
        reason,
        note: Some(shortened(note)),
        action: action.to_owned(),
        secondary: None,
    };
    context.metrics.writing("Event");
    let published = context.recorder.publish(&event, &cluster.object_ref(&())).await;
    if let Err(error) =
        published.or_else(|error| if is_namespace_terminating(&error) { Ok(()) } else { Err(error) })
    {
        warn!(error = &error as &dyn std::error::Error, "event not written");
    }
}

/// The API server takes notes of at most 1 KiB.
fn shortened(note: String) -> String {
    const NOTE_BYTES_MAX: usize = 1024;
    if note.len() <= NOTE_BYTES_MAX {
        return note;
    }
    let end =
        (0..=NOTE_BYTES_MAX - '…'.len_utf8()).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
    note.get(..end).map(|start| format!("{start}…")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_names_what_is_to_be_gone() {
        let live =
            json!({"epoch": 1, "operation": {"kind": "Replace", "from": 3}, "nodes": [{"downSince": "x"}]});
        let mut wanted = json!({"epoch": 2, "operation": {"kind": "Create"}, "nodes": []});
        name_what_goes(&mut wanted, &live);
        assert_eq!(wanted, json!({"epoch": 2, "operation": {"kind": "Create", "from": null}, "nodes": []}));
        let mut wanted = json!({"epoch": 2});
        name_what_goes(&mut wanted, &live);
        assert_eq!(wanted, json!({"epoch": 2, "operation": null, "nodes": null}));
        let mut first = json!({"epoch": 1});
        name_what_goes(&mut first, &Value::Null);
        assert_eq!(first, json!({"epoch": 1}));
    }
}
