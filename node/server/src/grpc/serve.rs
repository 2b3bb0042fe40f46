//! Accepts connections and serves gRPC on them.
//!
//! tonic's own server is not used: it would answer `CANCELLED` at a call's deadline, by a timer of its own for each
//! call, where a write's outcome is for the core to tell; and it neither bounds connections nor owns their tasks.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;
use tracing::{debug, warn};

use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Windows};

/// When the process has no file descriptor left, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to finish what is under way, once told to.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may be silent before its first byte.
const GREETED_WITHIN: Duration = Duration::from_secs(10);
/// The largest HTTP/2 frame: fewer frames for large values.
const HTTP2_FRAME_BYTES: u32 = 64 << 10;

#[derive(Debug, Error)]
pub enum ServeError {
    #[error("cannot listen on {address} for {name}: {source}")]
    Bind { name: &'static str, address: SocketAddr, source: io::Error },
    #[error("a connection's task ended in a panic: {0}")]
    Panicked(#[from] JoinError),
}

/// A bound socket and the limits of what it accepts.
pub struct Listener {
    listener: TcpListener,
    name: &'static str,
    connections_max: usize,
    http2: http2::Builder<TokioExecutor>,
}

impl Listener {
    pub async fn bind(
        name: &'static str,
        address: SocketAddr,
        limits: &crate::config::Limits,
        windows: Windows,
    ) -> Result<Self, ServeError> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServeError::Bind { name, address, source })?;
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .max_concurrent_streams(limits.connection_streams)
            .max_frame_size(HTTP2_FRAME_BYTES)
            .auto_date_header(false)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        Ok(Self { listener, name, connections_max: limits.connections, http2 })
    }

    /// Serves until cancelled, then lets connections finish what is under way, for a while. From `leaving` on, which is no
    /// later, each is asked to go elsewhere with its next requests; what it sends before it hears of that is served.
    pub async fn serve<S>(
        self,
        service: S,
        leaving: CancellationToken,
        cancelled: CancellationToken,
    ) -> Result<(), ServeError>
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let Self { listener, name, connections_max, http2 } = self;
        let connection = |stream| {
            // Who comes after the others were asked to go has nowhere else to go: asked as well, it would come again at once.
            let until = if leaving.is_cancelled() { &cancelled } else { &leaving };
            Self::connection((http2.clone(), name), stream, service.clone(), until.clone())
        };
        serve_each((listener, name), connections_max, cancelled.clone(), connection).await
    }

    async fn connection<S>(
        (http2, name): (http2::Builder<TokioExecutor>, &'static str),
        stream: TcpStream,
        service: S,
        leaving: CancellationToken,
    ) where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(listener = name, %error, "cannot set TCP_NODELAY");
        }
        // hyper looks for a client that is gone only once it has said something.
        if !matches!(timeout(GREETED_WITHIN, stream.readable()).await, Ok(Ok(()))) {
            return debug!(listener = name, "a connection on which nothing came");
        }
        let serving = http2.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = leaving.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            debug!(listener = name, %error, "connection ended");
        }
    }
}

/// Gives each connection a task, at most so many at once: the others wait in the kernel's queue. Ends soon after
/// it is cancelled, which connections have to notice themselves.
pub async fn serve_each<F: Future<Output = ()> + Send + 'static>(
    (listener, name): (TcpListener, &'static str),
    connections_max: usize,
    cancelled: CancellationToken,
    mut connection: impl FnMut(TcpStream) -> F,
) -> Result<(), ServeError> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancelled.cancelled() => break,
            Some(ended) = connections.join_next() => ended?,
            accepted = listener.accept(), if connections.len() < connections_max => match accepted {
                Ok((stream, _peer)) => {
                    connections.spawn(connection(stream));
                }
                Err(error) => {
                    warn!(listener = name, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    let all_closed = async {
        while let Some(ended) = connections.join_next().await {
            ended?;
        }
        Ok(())
    };
    // Those that remain are dropped, and closed by that.
    timeout(CLOSE_TIMEOUT, all_closed).await.unwrap_or(Ok(()))
}
