//! What a request to the API server is about: its path and its query.

use serde_json::Value;

/// A resource, or a collection of them in one namespace or in all.
pub(super) struct Resource {
    pub(super) path: String,
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    api: String,
    namespace: Option<String>,
    pub(super) plural: String,
    pub(super) name: Option<String>,
}

impl Resource {
    pub(super) fn of(path: &str) -> Self {
        let words: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (api, rest) = words.split_at(if words[0] == "api" { 2 } else { 3 });
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        Self {
            path: path.to_owned(),
            api: format!("/{}", api.join("/")),
            namespace: namespace.map(str::to_owned),
            plural: rest[0].to_owned(),
            name: rest.get(1).map(|name| (*name).to_owned()),
        }
    }

    /// True if the object at that path is in this collection.
    pub(super) fn has(&self, path: &str) -> bool {
        let object = Self::of(path);
        let is_within = self.namespace.is_none() || self.namespace == object.namespace;
        object.api == self.api && object.plural == self.plural && object.name.is_some() && is_within
    }
}

/// The parts of a query that the operator uses.
#[derive(Default)]
pub(super) struct Query {
    pub(super) is_watch: bool,
    pub(super) version: u64,
    pub(super) timeout_seconds: u64,
    labels: Vec<(String, String)>,
}

impl Query {
    pub(super) fn of(uri: &http::Uri) -> Self {
        let mut query = Self { timeout_seconds: 300, ..Self::default() };
        for pair in uri.query().unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace("%2F", "/").replace("%3D", "=").replace("%2C", ",");
            match key {
                "watch" => query.is_watch = value == "true",
                "resourceVersion" => query.version = value.parse().unwrap_or(0),
                "timeoutSeconds" => query.timeout_seconds = value.parse().unwrap(),
                "labelSelector" => {
                    let terms = value.split(',').map(|term| term.split_once('=').unwrap());
                    query.labels = terms.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                }
                _ => {}
            }
        }
        query
    }

    pub(super) fn selects(&self, object: &Value) -> bool {
        self.labels.iter().all(|(key, value)| object["metadata"]["labels"][key] == value.as_str())
    }
}
