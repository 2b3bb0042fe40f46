//! HTTP for probes and Prometheus: `/livez`, `/readyz`, `/metrics`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::exposition::expose;
use crate::handle::CoreHandle;

/// A core thread that has shown nothing for so long is stuck; it shows itself every second.
const STUCK_AFTER_MS: u64 = 30_000;
/// Connections that are kept open without a request must not hold up the end of the process.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Pages {
    pub core: CoreHandle,
    pub registry: Arc<Registry>,
}

impl Pages {
    pub async fn serve(self, listener: TcpListener, cancelled: CancellationToken) -> io::Result<()> {
        let pages = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self);
        let serving =
            axum::serve(listener, pages).with_graceful_shutdown(cancelled.clone().cancelled_owned());
        let closing = async {
            cancelled.cancelled().await;
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        };
        tokio::select! {
            served = serving.into_future() => served,
            () = closing => Ok(()),
        }
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
