//! Whether this process may write, and the gate in front of the API server that asks it.
//!
//! Right is given until a moment and ends there by itself, also while the whole process is frozen. Invariant: through a
//! client that was built behind the gate, nothing but reads leaves a process that does not lead.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::{Method, Request};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use thiserror::Error;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this process does not lead, and writes nothing")]
pub(crate) struct NotLeading;

/// Shared by who renews the Lease and by all who write.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leadership(Arc<Mutex<Option<Instant>>>);

impl Leadership {
    /// A client behind the gate. It sends nothing twice: that would leave without asking here once more, maybe long after
    /// another process leads. Whatever fails is looked at anew.
    pub(crate) fn client(&self, mut config: Config) -> kube::Result<Client> {
        config.default_retry = false;
        Ok(ClientBuilder::try_from(config)?.with_layer(self).build())
    }

    pub(crate) fn extend(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    pub(crate) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The moment at which the right to write ends.
    pub(crate) fn until(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be asked right before each write, and not remembered.
    pub(crate) fn check(&self) -> Result<(), NotLeading> {
        if self.until().is_some_and(|until| Instant::now() < until) { Ok(()) } else { Err(NotLeading) }
    }
}

impl<S> Layer<S> for Leadership {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { leadership: self.clone(), inner }
    }
}

pub(crate) struct Gate<S> {
    leadership: Leadership,
    inner: S,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Answer<S::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Answer<S::Response> {
        if *request.method() != Method::GET
            && let Err(refused) = self.leadership.check()
        {
            return Box::pin(async move { Err(refused.into()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move { answer.await.map_err(Into::into) })
    }
}
