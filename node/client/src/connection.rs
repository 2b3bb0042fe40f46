//! One HTTP/2 connection to one node, and the task that drives it.
//!
//! A connection is not used before the other side has answered a first ping: a kernel accepts connections for a
//! process that is frozen, and a forwarder for one that is gone, and a write sent into those has no known outcome.
//! It ends when its last holder drops it, when it breaks, or when calls are under way and the node has not answered
//! a ping in time: a frozen node must not hold requests until their deadlines.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection as H2Connection};
use h2::{Ping, PingPong};
use http::uri::Authority;
use keystore_proto::v1::operation::Operation;
use keystore_proto::v1::outcome::Outcome;
use prost::Message;
use rand::seq::SliceRandom;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::grpc::{CallError, Caller, Messages};
use crate::session::Session;

/// For the whole of looking the name up, connecting and shaking hands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For looking a name up. Names inside a Kubernetes cannot be resolved from everywhere, and where the resolver is
/// silent about them a request still has to have time for the endpoints that were given.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(500);
/// For one of several addresses of a name.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a connection with calls under way is tested, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Large enough for a few values of 1 MiB in flight.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const HEADER_LIST_BYTES_MAX: u32 = 64 << 10;

/// Why there is no connection. Nothing was sent.
#[derive(Debug, Clone, Error)]
pub(crate) enum DialError {
    #[error("\"{0}\" is not HOST:PORT")]
    Address(String),
    #[error("{address}: {error}")]
    Io { address: String, error: Arc<std::io::Error> },
    #[error("the name of {address} was not resolved within {LOOKUP_TIMEOUT:?}")]
    Lookup { address: String },
    #[error("{address} has no addresses")]
    NoAddress { address: String },
    #[error("{address} does not speak HTTP/2: {error}")]
    Handshake { address: String, error: Arc<h2::Error> },
    #[error("{address} accepted the connection and closed it")]
    Closed { address: String },
    #[error("{address} did not answer within {CONNECT_TIMEOUT:?}")]
    Timeout { address: String },
}

pub(crate) struct Connection {
    caller: Caller,
    closed: CancellationToken,
    in_flight: Arc<AtomicUsize>,
    /// Opened with the first operation that wants it. When it ends, so does the connection for new requests.
    session: OnceLock<Session>,
    /// Ends the driver with the last holder of the connection.
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    pub(crate) async fn dial(address: &str) -> Result<Self, DialError> {
        let authority: Authority = address
            .parse()
            .ok()
            .filter(|authority: &Authority| authority.port().is_some())
            .ok_or_else(|| DialError::Address(address.to_owned()))?;
        timeout(CONNECT_TIMEOUT, Self::dial_authority(address, authority))
            .await
            .map_err(|_| DialError::Timeout { address: address.to_owned() })?
    }

    async fn dial_authority(address: &str, authority: Authority) -> Result<Self, DialError> {
        let stream = connect(address).await?;
        let (sender, connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .handshake(stream)
            .await
            .map_err(|error| DialError::Handshake { address: address.to_owned(), error: Arc::new(error) })?;
        let closed = CancellationToken::new();
        let in_flight = Arc::new(AtomicUsize::new(0));
        let (answered, first_answer) = oneshot::channel();
        let driver = drive(connection, in_flight.clone(), closed.clone(), answered);
        let driver = AbortOnDropHandle::new(tokio::spawn(driver));
        first_answer.await.map_err(|_| DialError::Closed { address: address.to_owned() })?;
        let caller = Caller { sender, authority };
        Ok(Self { caller, closed, in_flight, session: OnceLock::new(), _driver: driver })
    }

    /// False once nothing can be sent any more; true says only that the end has not been noticed.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed.is_cancelled()
    }

    /// One message for one answer. `timeout` is only told to the other side: keeping it is the caller's.
    pub(crate) async fn call<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        request: &Q,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let _in_flight = InFlight::enter(&self.in_flight);
        self.noting(self.caller.clone().unary(path, request, timeout).await)
    }

    /// One operation on the session stream.
    pub(crate) async fn call_in_session(
        &self,
        operation: &Operation,
        timeout: Duration,
    ) -> Result<Outcome, CallError> {
        let _in_flight = InFlight::enter(&self.in_flight);
        let session = self.session.get_or_init(|| Session::start(self.caller.clone()));
        self.noting(session.call(operation, timeout).await)
    }

    /// One message for a stream of answers, which may take as long as it likes.
    pub(crate) async fn stream_answers<Q: Message>(
        &self,
        path: &'static str,
        request: &Q,
    ) -> Result<Messages, CallError> {
        let _in_flight = InFlight::enter(&self.in_flight);
        self.noting(self.caller.clone().stream_answers(path, request, None).await)
    }

    /// The next answer of a stream of this connection.
    pub(crate) async fn next_answer<A: Message + Default>(
        &self,
        answers: &mut Messages,
    ) -> Result<Option<A>, CallError> {
        let _in_flight = InFlight::enter(&self.in_flight);
        self.noting(answers.next().await)
    }

    /// Whatever the other side still answers on a connection that failed, new requests go over a new one.
    fn noting<T>(&self, result: Result<T, CallError>) -> Result<T, CallError> {
        if let Err(CallError::NotSent(_) | CallError::Broken(_)) = result {
            self.closed.cancel();
        }
        result
    }
}

/// Counts a call also when its future is dropped half-way.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn enter(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tries the addresses of a name in random order: a name of several nodes spreads its clients over them.
async fn connect(address: &str) -> Result<TcpStream, DialError> {
    let io_error = |error| DialError::Io { address: address.to_owned(), error: Arc::new(error) };
    let looked_up = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(address)).await;
    let looked_up = looked_up.map_err(|_| DialError::Lookup { address: address.to_owned() })?;
    let mut addresses: Vec<_> = looked_up.map_err(io_error)?.collect();
    addresses.shuffle(&mut rand::rng());
    let mut last = DialError::NoAddress { address: address.to_owned() };
    for socket in addresses {
        match timeout(ADDRESS_TIMEOUT, TcpStream::connect(socket)).await {
            Ok(Ok(stream)) => {
                // Requests are small and each is waited for.
                stream.set_nodelay(true).map_err(io_error)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = io_error(error),
            Err(_) => {
                last = DialError::Timeout { address: address.to_owned() };
            }
        }
    }
    Err(last)
}

/// Runs the connection until it ends, by itself or for lack of an answer to a ping.
async fn drive(
    mut connection: H2Connection<TcpStream, Bytes>,
    in_flight: Arc<AtomicUsize>,
    closed: CancellationToken,
    answered: oneshot::Sender<()>,
) {
    let _closed = closed.drop_guard();
    let pings = connection.ping_pong().expect("taken for the first time");
    tokio::select! {
        result = connection => {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
        }
        () = watch(pings, &in_flight, answered) => tracing::debug!("connection dropped, a ping was not answered"),
    }
}

/// Tells of the first answer to a ping; returns when calls are under way and a later one is not answered in time.
async fn watch(mut pings: PingPong, in_flight: &AtomicUsize, answered: oneshot::Sender<()>) {
    if pings.ping(Ping::opaque()).await.is_ok() {
        // Whoever dials may have given up already.
        let _ = answered.send(());
    }
    loop {
        sleep(PING_INTERVAL).await;
        if in_flight.load(Ordering::Relaxed) == 0 {
            continue;
        }
        match timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection is ending, and its own future says so.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
