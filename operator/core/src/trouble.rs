//! Why a pod's node does not run, in a sentence made of what the kubelet says about it.
//!
//! Invariant: the same trouble makes the same sentence from look to look, though the kubelet tries again all the time:
//! counts and times are left out, and reasons that take turns are one. How a container ended is told until the next one
//! has run for `HISTORY_MS`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::build::NODE_CONTAINER;
use crate::names::Names;

/// How much of a node's last words is repeated.
const LAST_WORDS_CHARS_MAX: usize = 400;
/// How long after its time to end a pod may still be there before that is told.
const LATE_SECONDS: i64 = 30;
/// Longer than any pause of the kubelet between two attempts: what ends again and again is not told now and then.
const HISTORY_MS: i64 = 10 * 60 * 1_000;

/// The troubles of these pods, those with the same one together; `None` if none has any.
pub fn explain(names: &Names, pods: &BTreeMap<u32, Pod>, now: Timestamp) -> Option<String> {
    let mut by_trouble: Vec<(String, Vec<String>)> = Vec::new();
    for (ordinal, pod) in pods {
        let Some(trouble) = explain_pod(pod, now) else { continue };
        match by_trouble.iter_mut().find(|(known, _)| *known == trouble) {
            Some((_, pods)) => pods.push(names.pod(*ordinal)),
            None => by_trouble.push((trouble, vec![names.pod(*ordinal)])),
        }
    }
    let told: Vec<_> =
        by_trouble.into_iter().map(|(trouble, pods)| format!("{}: {trouble}", pods.join(", "))).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

fn explain_pod(pod: &Pod, now: Timestamp) -> Option<String> {
    if let Some(by) = late_since(pod, now) {
        return Some(format!(
            "the pod was to end by {by} and is still there; if its machine is dead, remove the Node, taint it \
             node.kubernetes.io/out-of-service, or run kubectl delete pod --force --grace-period=0"
        ));
    }
    let status = pod.status.as_ref()?;
    let is_unscheduled = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("Unschedulable")
    });
    if is_unscheduled {
        return Some("no Kubernetes node can take the pod (kubectl describe pod says why)".to_owned());
    }
    let container =
        status.container_statuses.iter().flatten().find(|container| container.name == NODE_CONTAINER)?;
    if container.ready { None } else { explain_container(container, now) }
}

/// When a pod was to have ended at the latest that was told to and is still there: its machine may be dead.
fn late_since(pod: &Pod, now: Timestamp) -> Option<Timestamp> {
    let by = pod.metadata.deletion_timestamp.as_ref()?.0;
    (now.as_second() >= by.as_second().saturating_add(LATE_SECONDS)).then_some(by)
}

fn explain_container(container: &ContainerStatus, now: Timestamp) -> Option<String> {
    let state = container.state.as_ref();
    let waiting =
        state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
    match waiting {
        Some("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull") => {
            return Some(format!("the image {} cannot be had", container.image));
        }
        // On its way, or told by how the container ended.
        None | Some("CrashLoopBackOff" | "ContainerCreating" | "PodInitializing") => {}
        Some(reason) => return Some(format!("the container does not start ({reason})")),
    }
    let started = state.and_then(|state| state.running.as_ref()?.started_at.as_ref());
    if started.is_some_and(|started| now.as_millisecond() - started.0.as_millisecond() >= HISTORY_MS) {
        // It has come further than the one before it: whatever keeps it from being ready, it is not that.
        return None;
    }
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let ended = state.and_then(|state| state.terminated.as_ref()).or(last)?;
    (ended.exit_code != 0).then(|| explain_end(ended))
}

/// 128 and SIGKILL.
const KILLED: i32 = 137;

fn explain_end(ended: &ContainerStateTerminated) -> String {
    let code = ended.exit_code;
    // As keystore-node documents them; above 128 it was a signal.
    let meaning = match (code, ended.reason.as_deref()) {
        (_, Some("OOMKilled")) => ", it used more memory than its limit",
        (2, _) => ", its configuration is refused: change spec.config",
        (3, _) => ", its data directory cannot be used",
        (KILLED, _) => ", it was killed",
        _ => "",
    };
    // Who is killed says nothing of it: what it said last was about something else.
    let said = ended.message.as_deref().filter(|_| code != KILLED);
    let words = said.and_then(last_words).map(|words| format!(": {words}"));
    format!("the node ended with exit status {code}{meaning}{}", words.unwrap_or_default())
}

/// A node logs a JSON object a line, whose times would make each restart another sentence; what it says before its log
/// is set up is text.
fn last_words(message: &str) -> Option<String> {
    let lines: Vec<_> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let logged: Option<Value> = lines.last().and_then(|line| serde_json::from_str(line).ok());
    let text = match &logged {
        Some(line) => {
            let field = |name: &str| line.get(name).and_then(Value::as_str);
            field("error").or_else(|| field("message"))?.to_owned()
        }
        None => lines.into_iter().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join(" "),
    };
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let short: String = text.chars().take(LAST_WORDS_CHARS_MAX).collect();
    let cut = if short.len() < text.len() { "…" } else { "" };
    (!short.is_empty()).then(|| format!("{short}{cut}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn pod(state: &Value, last: &Value) -> Pod {
        serde_json::from_value(json!({"status": {"containerStatuses": [{
            "name": "keystore-node", "image": "example.com/node:1", "imageID": "", "ready": false, "restartCount": 4,
            "state": state, "lastState": last,
        }]}}))
        .unwrap()
    }

    fn names() -> Names {
        Names { namespace: "shop".into(), cluster: "demo".into() }
    }

    #[test]
    fn a_crash_is_told_with_its_meaning_and_the_nodes_last_words() {
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}});
        let runs = json!({"running": {}});
        let ended = |code: i32, message: &str| json!({"terminated": {"exitCode": code, "message": message}});
        let bad =
            "keystore-node: the configuration has 1 problem(s):\n  /etc/x: no: there is no such setting\n";
        let log = r#"{"timestamp":"2026-01-01T00:00:00Z","level":"ERROR","message":"the node cannot go on","error":"d/id is damaged"}"#;
        let both = format!("{{\"message\":\"cut\n{log}\n");
        for (state, last, expected) in [
            (
                &waits,
                ended(2, bad),
                "exit status 2, its configuration is refused: change spec.config: keystore-node: the configuration has \
                 1 problem(s): /etc/x: no: there is no such setting",
            ),
            (&waits, ended(3, &both), "exit status 3, its data directory cannot be used: d/id is damaged"),
            (&runs, ended(1, ""), "exit status 1"),
            (&runs, ended(137, &both), "exit status 137, it was killed"),
        ] {
            let told = explain(&names(), &BTreeMap::from([(1, pod(state, &last))]), NOW).unwrap();
            assert_eq!(told, format!("demo-1: the node ended with {expected}"));
        }
        let oom = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        let told = explain(&names(), &BTreeMap::from([(0, pod(&waits, &oom))]), NOW).unwrap();
        assert!(told.ends_with("exit status 137, it used more memory than its limit"), "{told}");
    }

    #[test]
    fn the_sentence_stays_while_the_kubelet_tries_again() {
        let ended = |second: u32| {
            let log = format!(r#"{{"timestamp":"00:00:0{second}Z","message":"stop","error":"full"}}"#);
            json!({"terminated": {"exitCode": 1, "message": log}})
        };
        let told =
            |state: &Value, last: &Value| explain(&names(), &BTreeMap::from([(0, pod(state, last))]), NOW);
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let first = told(&waits, &ended(1));
        assert!(first.is_some());
        assert_eq!(first, told(&json!({"running": {}}), &ended(2)));
        assert_eq!(first, told(&ended(3), &ended(2)));
        let pull = |reason: &str| told(&json!({"waiting": {"reason": reason}}), &json!({}));
        assert_eq!(pull("ErrImagePull"), pull("ImagePullBackOff"));
        assert_eq!(pull("ErrImagePull").unwrap(), "demo-0: the image example.com/node:1 cannot be had");
    }

    #[test]
    fn pods_with_one_trouble_are_told_together_and_those_without_not_at_all() {
        let waits = json!({"waiting": {"reason": "CreateContainerConfigError"}});
        let unscheduled: Pod = serde_json::from_value(json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"},
        ]}}))
        .unwrap();
        let mut well = pod(&json!({"running": {}}), &json!({"terminated": {"exitCode": 1}}));
        well.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0].ready = true;
        let starting = pod(&json!({"waiting": {"reason": "ContainerCreating"}}), &json!({}));
        let since = json!({"running": {"startedAt": Timestamp::from_millisecond(-HISTORY_MS).unwrap()}});
        let frozen = pod(&since, &json!({"terminated": {"exitCode": 3}}));
        let pods = BTreeMap::from([
            (0, pod(&waits, &json!({}))),
            (1, well.clone()),
            (2, unscheduled),
            (3, pod(&waits, &json!({}))),
            (4, starting),
            (5, frozen),
        ]);
        assert_eq!(
            explain(&names(), &pods, NOW).unwrap(),
            "demo-0, demo-3: the container does not start (CreateContainerConfigError); demo-2: no Kubernetes node can \
             take the pod (kubectl describe pod says why)"
        );
        assert_eq!(explain(&names(), &BTreeMap::from([(1, well)]), NOW), None);
    }

    #[test]
    fn a_pod_that_should_have_ended_long_ago_is_told() {
        let pod = |second: i64| -> Pod {
            let by = Timestamp::from_second(second).unwrap();
            serde_json::from_value(json!({"metadata": {"deletionTimestamp": by}})).unwrap()
        };
        let told = explain(&names(), &BTreeMap::from([(4, pod(-LATE_SECONDS))]), NOW).unwrap();
        assert!(
            told.starts_with("demo-4: the pod was to end by 1969-12-31T23:59:30Z and is still there; "),
            "{told}"
        );
        assert!(told.ends_with("or run kubectl delete pod --force --grace-period=0"), "{told}");
        assert_eq!(explain(&names(), &BTreeMap::from([(4, pod(1 - LATE_SECONDS))]), NOW), None);
    }

    #[test]
    fn long_last_words_are_cut() {
        let long = last_words(&"ä".repeat(1000)).unwrap();
        assert_eq!(long.chars().count(), LAST_WORDS_CHARS_MAX + 1);
        assert_eq!(last_words("\n \n"), None);
    }
}
