//! Scenario 3: what cannot work is refused by the API server, with a sentence that says what to change.
//!
//! Nothing runs here: creations are dry runs, and the resource that changes are tried on is paused.

use anyhow::{Context, Result, bail, ensure};
use keystore_crds::KeyStoreCluster;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::Ending;
use crate::harness::ksc::{NAME, manifest};
use crate::harness::sandbox::Sandbox;
use crate::store::CAUSAL_KEYSPACE;

/// A manifest that differs from a good one by a merge patch.
struct Case {
    what: &'static str,
    patch: Value,
    /// What the refusal has to say; none if it is to be accepted.
    says: Option<&'static [&'static str]>,
}

fn refused(what: &'static str, patch: Value, says: &'static [&'static str]) -> Case {
    Case { what, patch, says: Some(says) }
}

fn accepted(what: &'static str, patch: Value) -> Case {
    Case { what, patch, says: None }
}

fn creations() -> Vec<Case> {
    let name = |name: &str| json!({"metadata": {"name": name}});
    vec![
        accepted("the manifest that the others differ from", json!({})),
        accepted(
            "nothing but a name",
            json!({"spec": {
                "replicas": null, "replicationFactor": null, "partitions": null, "storage": null,
                "resources": null, "image": null, "keyspaces": null,
            }}),
        ),
        accepted("a name of 40 characters", name(&"k".repeat(40))),
        accepted("one node", json!({"spec": {"replicas": 1, "replicationFactor": 1}})),
        accepted("more nodes than copies", json!({"spec": {"replicas": 5}})),
        refused(
            "more copies than nodes",
            json!({"spec": {"replicas": 2}}),
            &["replicas must not be below replicationFactor", "raise replicas or lower replicationFactor"],
        ),
        refused(
            "no nodes",
            json!({"spec": {"replicas": 0}}),
            &["spec.replicas", "greater than or equal to 1"],
        ),
        refused(
            "65 nodes",
            json!({"spec": {"replicas": 65}}),
            &["spec.replicas", "less than or equal to 64"],
        ),
        accepted("who is away for ten minutes is replaced", json!({"spec": {"replaceAfterSeconds": 600}})),
        refused(
            "a time before now",
            json!({"spec": {"replaceAfterSeconds": -1}}),
            &["spec.replaceAfterSeconds", "greater than or equal to 0"],
        ),
        refused("no copies", json!({"spec": {"replicationFactor": 0}}), &["spec.replicationFactor"]),
        refused("100 partitions", json!({"spec": {"partitions": 100}}), &["a power of two from 16 to 4096"]),
        refused(
            "a name of 41 characters",
            name(&"k".repeat(41)),
            &["at most 40 characters", "choose a shorter name"],
        ),
        refused(
            "a name with a dot",
            name("my.store"),
            &["metadata.name must start with a lower-case letter", "no dots"],
        ),
        refused(
            "a name that begins with a digit",
            name("1store"),
            &["metadata.name must start with a lower-case letter"],
        ),
        refused(
            "an unknown consistency",
            json!({"spec": {"consistency": {"read": "most"}}}),
            &["spec.consistency.read", "supported values"],
        ),
        refused(
            "a setting that the operator decides",
            json!({"spec": {"config": {"node": {"name": "me"}}}}),
            &["set by the operator: remove them"],
        ),
        refused(
            "a field that does not exist",
            json!({"spec": {"replica": 3}}),
            &["unknown field", "spec.replica"],
        ),
    ]
}

fn creations_with_storage() -> Vec<Case> {
    vec![
        refused(
            "an unknown engine",
            json!({"spec": {"storage": {"engine": "rocks"}}}),
            &["spec.storage.engine", "supported values", "\"sled\"", "\"lsm\"", "\"memory\""],
        ),
        accepted("the engine in memory", json!({"spec": {"storage": {"engine": "memory"}}})),
        accepted("the engine of tables", json!({"spec": {"storage": {"engine": "lsm"}}})),
        refused(
            "less storage than a log takes",
            json!({"spec": {"storage": {"size": "64Mi"}}}),
            &["storage.size must be at least 128Mi", "choose a size for your data"],
        ),
        refused(
            "a zone label that is none",
            json!({"spec": {"zoneTopologyKey": "rack no. 7"}}),
            &["zoneTopologyKey must be the key of a label"],
        ),
        refused(
            "a size that is none",
            json!({"spec": {"storage": {"size": "much"}}}),
            &["storage.size must be a positive quantity"],
        ),
        refused(
            "a size of nothing",
            json!({"spec": {"storage": {"size": "0"}}}),
            &["storage.size must be a positive quantity"],
        ),
    ]
}

fn creations_with_keyspaces() -> Vec<Case> {
    vec![
        accepted("63 keyspaces beside the default", json!({"spec": {"keyspaces": keyspaces(63)}})),
        refused(
            "64 keyspaces beside the default",
            json!({"spec": {"keyspaces": keyspaces(64)}}),
            &["at most 64 keyspaces", "list at most 63 others"],
        ),
        refused(
            "siblings in the default keyspace",
            json!({"spec": {"keyspaces": [{"name": "default", "mode": "siblings"}]}}),
            &["keyspace default always has mode lww", "list another keyspace"],
        ),
        refused(
            "an unknown mode",
            json!({"spec": {"keyspaces": [{"name": "carts", "mode": "strong"}]}}),
            &["spec.keyspaces[0].mode", "supported values"],
        ),
        refused(
            "a keyspace with a name in capitals",
            json!({"spec": {"keyspaces": [{"name": "Carts"}]}}),
            &["a keyspace's name holds only lower-case letters"],
        ),
        refused(
            "two keyspaces of one name",
            json!({"spec": {"keyspaces": [{"name": "carts"}, {"name": "carts", "mode": "siblings"}]}}),
            &["spec.keyspaces[1]", "duplicate value"],
        ),
    ]
}

fn changes() -> Vec<Case> {
    vec![
        accepted("no change", json!({})),
        accepted("other labels", json!({"metadata": {"labels": {"team": "storage"}}})),
        accepted("more nodes, which the operator may hold", json!({"spec": {"replicas": 5}})),
        accepted("fewer nodes than copies, which the operator holds", json!({"spec": {"replicas": 2}})),
        accepted("the same size in other words", json!({"spec": {"storage": {"size": "0.5Gi"}}})),
        refused(
            "other partitions",
            json!({"spec": {"partitions": 128}}),
            &["partitions cannot be changed", "set it back"],
        ),
        refused(
            "another replication factor",
            json!({"spec": {"replicationFactor": 1}}),
            &["replicationFactor cannot be changed", "set it back"],
        ),
        refused(
            "another storage class",
            json!({"spec": {"storage": {"storageClassName": "fast"}}}),
            &["storage.storageClassName cannot be changed", "set it back"],
        ),
        refused(
            "another engine",
            json!({"spec": {"storage": {"engine": "memory"}}}),
            &["storage.engine cannot be changed", "create a new cluster"],
        ),
        accepted(
            "the keyspaces in another order",
            json!({"spec": {"keyspaces": [causal("siblings"), {"name": "default"}]}}),
        ),
        accepted("the default keyspace unmentioned", json!({"spec": {"keyspaces": [causal("siblings")]}})),
        refused(
            "another mode of a keyspace",
            json!({"spec": {"keyspaces": [causal("lww")]}}),
            &["the mode of a keyspace cannot be changed", "set it back"],
        ),
        refused(
            "a keyspace less",
            json!({"spec": {"keyspaces": [{"name": "default"}]}}),
            &["a keyspace cannot be removed", "list every keyspace"],
        ),
        refused(
            "less storage",
            json!({"spec": {"storage": {"size": "256Mi"}}}),
            &["storage.size cannot shrink", "set it back"],
        ),
        refused(
            "another zone label",
            json!({"spec": {"zoneTopologyKey": "example.com/rack"}}),
            &["zoneTopologyKey cannot be changed", "set it back"],
        ),
    ]
}

fn keyspaces(count: usize) -> Vec<Value> {
    (0..count).map(|number| json!({"name": format!("keyspace-{number}")})).collect()
}

/// The keyspace that the manifest has beside the default one.
fn causal(mode: &str) -> Value {
    json!({"name": CAUSAL_KEYSPACE, "mode": mode})
}

pub(super) async fn run(sandbox: &Sandbox) -> Result<Ending> {
    let mut problems = Vec::new();
    let creations = [creations(), creations_with_storage(), creations_with_keyspaces()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    for case in &creations {
        let mut wanted = manifest();
        merge(&mut wanted, &case.patch);
        problems.extend(judge(case, sandbox.try_ksc(&wanted).await));
    }

    let mut paused = manifest();
    merge(&mut paused, &json!({"spec": {"paused": true}}));
    sandbox.create_ksc(&paused).await.context("the paused resource is refused")?;
    let changes = changes();
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    for case in &changes {
        let result = sandbox.api::<KeyStoreCluster>().patch(NAME, &params, &Patch::Merge(&case.patch)).await;
        problems.extend(judge(case, result.map(drop)));
    }
    ensure!(problems.is_empty(), "{} of the manifests:\n  {}", problems.len(), problems.join("\n  "));
    if sandbox.store_pods().await?.is_empty() {
        Ok(Ending::Passed(format!("{} creations, {} changes", creations.len(), changes.len())))
    } else {
        bail!("a paused resource has pods")
    }
}

/// What is wrong with the answer, if anything.
fn judge(case: &Case, answer: kube::Result<()>) -> Option<String> {
    let Case { what, says, .. } = case;
    match (answer, says) {
        (Ok(()), None) => None,
        (Ok(()), Some(_)) => Some(format!("{what}: accepted")),
        (Err(kube::Error::Api(status)), Some(says)) if matches!(status.code, 400 | 422) => {
            let missing: Vec<_> = says.iter().filter(|part| !mentions(&status.message, part)).collect();
            (!missing.is_empty()).then(|| format!("{what}: refused without {missing:?}: {}", status.message))
        }
        (Err(error), _) => Some(format!("{what}: {error}")),
    }
}

fn mentions(message: &str, part: &str) -> bool {
    message.to_lowercase().contains(&part.to_lowercase())
}

/// JSON merge patch (RFC 7396) of objects.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else { return patch.clone_into(target) };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            if let Value::Object(target) = target {
                target.remove(name);
            }
        } else {
            merge(&mut target[name.as_str()], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_replaces_adds_and_removes() {
        let mut target = json!({"spec": {"a": 1, "b": {"c": 2}}, "kind": "K"});
        merge(&mut target, &json!({"spec": {"a": null, "b": {"d": 3}, "e": [4]}}));
        assert_eq!(target, json!({"spec": {"b": {"c": 2, "d": 3}, "e": [4]}, "kind": "K"}));
        merge(&mut target, &json!({"spec": null}));
        assert_eq!(target, json!({"kind": "K"}));
    }
}
