//! An API server in memory: enough of GET, list, watch, server-side apply, status, create, replace and delete for an
//! operator, with versions, preconditions and the ways in which it can be in trouble.
//!
//! Stands in for the StatefulSet controller too: a StatefulSet has its pods, ready, each with an address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::{Body, ClientBuilder};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::fake_path::{Query, Resource};
use crate::leadership::Leadership;

#[derive(Clone, Default)]
pub(super) struct FakeApi(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

/// What somebody else does, right before a request is handled.
type Interruption = Box<dyn FnOnce(&mut State) + Send>;

#[derive(Default)]
pub(super) struct State {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// Method and path of every write, in order.
    writes: Vec<String>,
    requests: usize,
    version: u64,
    /// All that ever happened, for those who watch.
    changes: Vec<Change>,
    /// Watches from before this version are told that it is gone.
    compacted: u64,
    /// Answers writes to paths that contain this with this.
    refusal: Option<(String, Value)>,
    /// Answers everything with this.
    outage: Option<StatusCode>,
    /// Before the next write to a path that contains this.
    interruptions: Vec<(String, Interruption)>,
}

struct Change {
    version: u64,
    path: String,
    before: Option<Value>,
    after: Option<Value>,
}

impl FakeApi {
    /// A client that may write while `leadership` says so.
    pub(super) fn client(&self, leadership: &Leadership) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.answer(request).await }
        });
        ClientBuilder::new(service, "shop").with_layer(leadership).build()
    }

    /// A client for the Lease, which is written before anything is led; `None` while the server cannot be reached.
    pub(super) fn ungated_client(&self, is_reachable: impl Fn() -> bool + Clone + Send + 'static) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (api, is_reachable) = (api.clone(), is_reachable.clone());
            async move {
                if !is_reachable() {
                    std::future::pending::<()>().await;
                }
                api.answer(request).await
            }
        });
        Client::new(service, "shop")
    }

    pub(super) fn put(&self, path: &str, object: Value) {
        self.change(|state| drop(state.store(path, object)));
    }

    /// Somebody changes an object that is there.
    pub(super) fn edit(&self, path: &str, edit: impl FnOnce(&mut Value)) {
        self.change(|state| state.edit(path, edit));
    }

    pub(super) fn get(&self, path: &str) -> Option<Value> {
        self.state(|state| state.objects.get(path).cloned())
    }

    pub(super) fn remove(&self, path: &str) {
        self.change(|state| drop(state.remove(path)));
    }

    /// What the garbage collector does when their owner is gone.
    pub(super) fn collect_children(&self) {
        self.change(|state| {
            let owned = |object: &Value| !object["metadata"]["ownerReferences"].is_null();
            let paths: Vec<_> = state
                .objects
                .iter()
                .filter(|(_, object)| owned(object))
                .map(|(path, _)| path.clone())
                .collect();
            paths.iter().for_each(|path| drop(state.remove(path)));
        });
    }

    /// From now on; an empty text stands for every path.
    pub(super) fn refuse_writes_to(&self, part: &str, status: Value) {
        self.state(|state| state.refusal = Some((part.to_owned(), status)));
    }

    /// From now on every request fails so, until it is called with `None`.
    pub(super) fn fail_with(&self, outage: Option<StatusCode>) {
        self.state(|state| state.outage = outage);
    }

    pub(super) fn before_the_next_write_to(
        &self,
        part: &str,
        interruption: impl FnOnce(&mut State) + Send + 'static,
    ) {
        self.state(|state| state.interruptions.push((part.to_owned(), Box::new(interruption))));
    }

    /// Forgets its history: every watch ends with 410.
    pub(super) fn compact(&self) {
        self.change(|state| {
            state.version += 1;
            state.compacted = state.version;
        });
    }

    /// Every write since the last call.
    pub(super) fn take_writes(&self) -> Vec<String> {
        self.state(|state| std::mem::take(&mut state.writes))
    }

    /// How many requests came since the last call.
    pub(super) fn take_requests(&self) -> usize {
        self.state(|state| std::mem::take(&mut state.requests))
    }

    fn state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.state.lock().unwrap())
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        self.state(f);
        self.0.changed.notify_waiters();
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let (parts, body) = request.into_parts();
        let query = Query::of(&parts.uri);
        let resource = Resource::of(parts.uri.path());
        if query.is_watch && self.state(|state| state.outage).is_none() {
            return Ok(self.watch(&resource, &query).await);
        }
        let body = body.collect_bytes().await?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (code, answer) = self.state(|state| state.handle(&parts.method, &resource, &query, body));
        self.0.changed.notify_waiters();
        Ok(response(code, answer.to_string()))
    }

    /// Answers once something has happened that the watcher does not know, or after the time that it asks for.
    async fn watch(&self, resource: &Resource, query: &Query) -> Response<Body> {
        let events = async {
            loop {
                let changed = self.0.changed.notified();
                let events = self.state(|state| state.events(resource, query));
                if !events.is_empty() {
                    return events;
                }
                changed.await;
            }
        };
        let events = timeout(Duration::from_secs(query.timeout_seconds), events).await.unwrap_or_default();
        response(StatusCode::OK, events)
    }
}

fn response(code: StatusCode, body: String) -> Response<Body> {
    Response::builder().status(code).body(Body::from(body.into_bytes())).unwrap()
}

impl State {
    fn handle(
        &mut self,
        method: &Method,
        resource: &Resource,
        query: &Query,
        body: Value,
    ) -> (StatusCode, Value) {
        self.requests += 1;
        if *method != Method::GET {
            self.writes.push(format!("{method} {}", resource.path));
        }
        if let Some(code) = self.outage {
            return failure(code, "InternalError", "the server is in trouble");
        }
        if *method != Method::GET {
            let hits = |part: &String| resource.path.contains(part.as_str());
            if let Some(at) = self.interruptions.iter().position(|(part, _)| hits(part)) {
                let (_, interrupt) = self.interruptions.remove(at);
                interrupt(self);
            }
            if let Some((_, status)) = self.refusal.as_ref().filter(|(part, _)| hits(part)) {
                let code = u16::try_from(status["code"].as_u64().unwrap()).unwrap();
                return (StatusCode::from_u16(code).unwrap(), status.clone());
            }
        }
        let path = resource.path.as_str();
        match *method {
            Method::GET if resource.name.is_none() => (StatusCode::OK, self.list(resource, query)),
            Method::GET => match self.objects.get(path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => not_found(),
            },
            Method::PATCH => match path.strip_suffix("/status") {
                Some(resource) => self.write_status(resource, &body),
                None => self.apply(path, body),
            },
            // Events are told and forgotten.
            Method::POST if resource.plural == "events" => (StatusCode::CREATED, body),
            Method::POST => self.create(path, body),
            Method::PUT => self.replace(path, body),
            Method::DELETE => self.delete(path, &body["preconditions"]["uid"]),
            _ => (StatusCode::METHOD_NOT_ALLOWED, Value::Null),
        }
    }

    fn list(&self, resource: &Resource, query: &Query) -> Value {
        let selected =
            self.objects.iter().filter(|(path, object)| resource.has(path) && query.selects(object));
        let items: Vec<_> = selected.map(|(_, object)| object).collect();
        let metadata = json!({"resourceVersion": self.version.to_string()});
        json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items})
    }

    /// A line for each change since the version asked for. An object that is selected no longer is gone for the watcher.
    fn events(&self, resource: &Resource, query: &Query) -> String {
        if query.version < self.compacted {
            let (_, gone) = failure(StatusCode::GONE, "Expired", "too old resource version");
            return format!("{}\n", json!({"type": "ERROR", "object": gone}));
        }
        let news =
            self.changes.iter().filter(|change| change.version > query.version && resource.has(&change.path));
        let selected = |object: &Option<Value>| object.clone().filter(|object| query.selects(object));
        let event = |change: &Change| {
            let (type_, object) = match (selected(&change.before), selected(&change.after)) {
                (None, None) => return None,
                (None, Some(after)) => ("ADDED", after),
                (Some(_), Some(after)) => ("MODIFIED", after),
                (Some(before), None) => ("DELETED", change.after.clone().unwrap_or(before)),
            };
            let mut object = object;
            object["metadata"]["resourceVersion"] = json!(change.version.to_string());
            Some(format!("{}\n", json!({"type": type_, "object": object})))
        };
        news.filter_map(event).collect()
    }

    /// An apply names in its metadata what it expects of the object that is there: its UID, its version, or neither.
    fn apply(&mut self, path: &str, body: Value) -> (StatusCode, Value) {
        let live = self.objects.get(path);
        let is_kept = |key: &str| {
            let wanted = &body["metadata"][key];
            wanted.is_null() || live.is_some_and(|live| live["metadata"][key] == *wanted)
        };
        // A version that an object would have is not looked at where there is no object.
        let is_expected = is_kept("uid") && (live.is_none() || is_kept("resourceVersion"));
        if is_expected { (StatusCode::OK, self.store(path, body)) } else { conflict() }
    }

    fn create(&mut self, collection: &str, body: Value) -> (StatusCode, Value) {
        let path = format!("{collection}/{}", body["metadata"]["name"].as_str().unwrap());
        if self.objects.contains_key(&path) {
            return failure(StatusCode::CONFLICT, "AlreadyExists", "the object exists");
        }
        (StatusCode::CREATED, self.store(&path, body))
    }

    fn replace(&mut self, path: &str, body: Value) -> (StatusCode, Value) {
        match self.objects.get(path) {
            None => not_found(),
            Some(live) if live["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] => {
                conflict()
            }
            Some(_) => (StatusCode::OK, self.store(path, body)),
        }
    }

    /// Whoever deletes may say which object it means, by its UID.
    fn delete(&mut self, path: &str, uid: &Value) -> (StatusCode, Value) {
        let is_meant = |live: &Value| uid.is_null() || live["metadata"]["uid"] == *uid;
        if self.objects.get(path).is_some_and(|live| !is_meant(live)) {
            return conflict();
        }
        self.remove(path).map_or_else(not_found, |object| (StatusCode::OK, object))
    }

    pub(super) fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let uid = format!("uid-{}", self.version);
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(uid);
        }
        metadata["resourceVersion"] = json!(self.version.to_string());
        metadata["generation"] = json!(1);
        if object["kind"] == "StatefulSet" {
            self.run_pods(path, &mut object);
        }
        let before = self.objects.insert(path.to_owned(), object.clone());
        let change =
            Change { version: self.version, path: path.to_owned(), before, after: Some(object.clone()) };
        self.changes.push(change);
        object
    }

    pub(super) fn edit(&mut self, path: &str, edit: impl FnOnce(&mut Value)) {
        let mut object = self.objects.get(path).cloned().unwrap();
        edit(&mut object);
        self.store(path, object);
    }

    pub(super) fn remove(&mut self, path: &str) -> Option<Value> {
        let object = self.objects.remove(path)?;
        self.version += 1;
        let before = Some(object.clone());
        self.changes.push(Change { version: self.version, path: path.to_owned(), before, after: None });
        Some(object)
    }

    /// Bound to a version, like an apply.
    fn write_status(&mut self, path: &str, body: &Value) -> (StatusCode, Value) {
        let Some(live) = self.objects.get(path) else { return not_found() };
        let expected = &body["metadata"]["resourceVersion"];
        if !expected.is_null() && live["metadata"]["resourceVersion"] != *expected {
            return conflict();
        }
        self.edit(path, |object| merge(&mut object["status"], &body["status"]));
        (StatusCode::OK, self.objects.get(path).cloned().unwrap())
    }

    fn run_pods(&mut self, path: &str, set: &mut Value) {
        let replicas = set["spec"]["replicas"].as_u64().unwrap();
        set["status"] = json!({
            "observedGeneration": 1, "replicas": replicas, "currentReplicas": replicas, "updatedReplicas": replicas,
            "currentRevision": "r1", "updateRevision": "r1",
        });
        let (namespace, name) =
            path.split_once("/apis/apps/v1").unwrap().1.split_once("/statefulsets/").unwrap();
        let pod_path = |ordinal: u64| format!("/api/v1{namespace}/pods/{name}-{ordinal}");
        for ordinal in (0..replicas)
            .filter(|ordinal| !self.objects.contains_key(&pod_path(*ordinal)))
            .collect::<Vec<_>>()
        {
            let labels = set["spec"]["template"]["metadata"]["labels"].clone();
            let metadata =
                json!({"name": format!("{name}-{ordinal}"), "namespace": "shop", "labels": labels});
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                "spec": {"nodeName": format!("node-{ordinal}"), "containers": []},
                "status": {
                    "podIP": format!("10.0.0.{ordinal}"),
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            });
            self.store(&pod_path(ordinal), pod);
        }
        let mut surplus = replicas;
        while self.remove(&pod_path(surplus)).is_some() {
            surplus += 1;
        }
    }
}

/// As RFC 7386 says.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

fn failure(code: StatusCode, reason: &str, message: &str) -> (StatusCode, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code.as_u16(),
    });
    (code, status)
}

fn conflict() -> (StatusCode, Value) {
    failure(StatusCode::CONFLICT, "Conflict", "the object has been modified")
}

fn not_found() -> (StatusCode, Value) {
    failure(StatusCode::NOT_FOUND, "NotFound", "not found")
}
