//! HTTP for probes and Prometheus: `/livez`, `/readyz`, `/metrics`.

use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::exposition::expose;
use crate::grpc::{ServeError, serve_each};
use crate::handle::CoreHandle;

/// A core thread that has shown nothing for so long is stuck; it shows itself every second.
const STUCK_AFTER_MS: u64 = 30_000;
/// Connections at once, for a few probes and scrapers. One without a request is closed after a while (by hyper,
/// which has a limit for that once it is given a timer), so that idle ones never keep probes out for long.
const CONNECTIONS_MAX: usize = 256;

#[derive(Clone)]
pub struct Pages {
    pub core: CoreHandle,
    pub registry: Arc<Registry>,
}

impl Pages {
    pub async fn serve(self, listener: TcpListener, cancelled: CancellationToken) -> Result<(), ServeError> {
        let pages = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self);
        let connection = |stream| connection(stream, pages.clone(), cancelled.clone());
        serve_each((listener, "http"), CONNECTIONS_MAX, cancelled.clone(), connection).await
    }
}

async fn connection(stream: TcpStream, pages: Router, cancelled: CancellationToken) {
    let mut http1 = http1::Builder::new();
    http1.timer(TokioTimer::new());
    let mut serving = pin!(http1.serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages)));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = cancelled.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection for http ended");
    }
}

async fn livez(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    let silent_ms = pages.core.clock().mono_ms().saturating_sub(pages.core.view().published_ms);
    if silent_ms > STUCK_AFTER_MS {
        return (StatusCode::SERVICE_UNAVAILABLE, "the core thread is stuck\n");
    }
    (StatusCode::OK, "ok\n")
}

async fn readyz(State(pages): State<Pages>) -> (StatusCode, String) {
    match pages.core.obstacle() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
    }
}

async fn metrics(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    match expose(&pages.registry, accept) {
        Ok((content_type, text)) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
