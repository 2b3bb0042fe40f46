//! An API server in memory: enough of GET, list, server-side apply, status, create and delete for a reconcile.
//!
//! Stands in for the StatefulSet controller too: applying a StatefulSet makes its pods, ready, each with an address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

#[derive(Clone, Default)]
pub(super) struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// Method and path of every write, in order.
    writes: Vec<String>,
    version: u64,
    /// Answers writes to paths that contain this with this.
    refusal: Option<(String, Value)>,
    /// Somebody creates this at this path, right before the next write to it.
    intruder: Option<(String, Value)>,
}

impl FakeApi {
    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.answer(request).await }
        });
        Client::new(service, "shop")
    }

    pub(super) fn put(&self, path: &str, object: Value) {
        self.0.lock().unwrap().store(path, object);
    }

    pub(super) fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    pub(super) fn remove(&self, path: &str) {
        self.0.lock().unwrap().objects.remove(path);
    }

    /// What the garbage collector does when their owner is gone.
    pub(super) fn collect_children(&self) {
        self.0.lock().unwrap().objects.retain(|_, object| object["metadata"]["ownerReferences"].is_null());
    }

    /// From now on.
    pub(super) fn refuse_writes_to(&self, part: &str, status: Value) {
        self.0.lock().unwrap().refusal = Some((part.to_owned(), status));
    }

    pub(super) fn put_before_the_next_write(&self, path: &str, object: Value) {
        self.0.lock().unwrap().intruder = Some((path.to_owned(), object));
    }

    /// Every write since the last call.
    pub(super) fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().writes)
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (code, answer) = self.0.lock().unwrap().handle(&parts.method, &parts.uri, body);
        let response = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
        Ok(response.unwrap())
    }
}

impl State {
    fn handle(&mut self, method: &Method, uri: &http::Uri, body: Value) -> (StatusCode, Value) {
        let path = uri.path().to_owned();
        if *method != Method::GET {
            self.writes.push(format!("{method} {path}"));
            if let Some((_, status)) = self.refusal.as_ref().filter(|(part, _)| path.contains(part.as_str()))
            {
                let code = u16::try_from(status["code"].as_u64().unwrap()).unwrap();
                return (StatusCode::from_u16(code).unwrap(), status.clone());
            }
            if let Some((path, object)) = self.intruder.take_if(|(intruded, _)| *intruded == path) {
                self.store(&path, object);
            }
        }
        match *method {
            Method::GET if uri.query().is_some_and(|query| query.contains("labelSelector")) => {
                (StatusCode::OK, self.list(&path))
            }
            Method::GET => match self.objects.get(&path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => not_found(),
            },
            Method::PATCH => match path.strip_suffix("/status") {
                Some(resource) => self.write_status(resource, &body),
                None => self.apply(&path, body),
            },
            Method::POST => (StatusCode::CREATED, body),
            Method::DELETE => match self.objects.remove(&path) {
                Some(object) => (StatusCode::OK, object),
                None => not_found(),
            },
            _ => (StatusCode::METHOD_NOT_ALLOWED, Value::Null),
        }
    }

    fn list(&self, path: &str) -> Value {
        let prefix = format!("{path}/");
        let items: Vec<_> = self
            .objects
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix))
            .map(|(_, object)| object)
            .collect();
        json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
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

    fn store(&mut self, path: &str, mut object: Value) -> Value {
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
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn write_status(&mut self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.version += 1;
        let version = self.version.to_string();
        let Some(object) = self.objects.get_mut(path) else { return not_found() };
        object["status"] = body["status"].clone();
        object["metadata"]["resourceVersion"] = json!(version);
        (StatusCode::OK, object.clone())
    }

    fn run_pods(&mut self, path: &str, set: &mut Value) {
        let replicas = set["spec"]["replicas"].as_u64().unwrap();
        set["status"] = json!({
            "observedGeneration": 1, "replicas": replicas, "currentReplicas": replicas, "updatedReplicas": replicas,
            "currentRevision": "r1", "updateRevision": "r1",
        });
        let (namespace, name) =
            path.split_once("/apis/apps/v1").unwrap().1.split_once("/statefulsets/").unwrap();
        for ordinal in 0..replicas {
            let pod = format!("{name}-{ordinal}");
            let path = format!("/api/v1{namespace}/pods/{pod}");
            let labels = set["spec"]["template"]["metadata"]["labels"].clone();
            self.objects.insert(
                path,
                json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": labels},
                    "spec": {"nodeName": format!("node-{ordinal}"), "containers": []},
                    "status": {
                        "podIP": format!("10.0.0.{ordinal}"),
                        "conditions": [{"type": "Ready", "status": "True"}],
                    },
                }),
            );
        }
    }
}

fn conflict() -> (StatusCode, Value) {
    let status = json!({
        "kind": "Status", "status": "Failure", "message": "the object has been modified", "reason": "Conflict", "code": 409,
    });
    (StatusCode::CONFLICT, status)
}

fn not_found() -> (StatusCode, Value) {
    let status = json!({"kind": "Status", "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404});
    (StatusCode::NOT_FOUND, status)
}
