//! Which services stand behind which port.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::TryFutureExt as _;
use futures::future::{Either, MapOk};
use http::{Request, Response};
use hyper::body::Incoming;
use keystore_proto::DESCRIPTORS;
use keystore_proto::v1::admin_server::AdminServer;
use keystore_proto::v1::key_store_server::{KeyStoreServer, SERVICE_NAME as KEY_STORE};
use keystore_proto::v1::peer_server::PeerServer;
use thiserror::Error;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tower::Service;

use crate::grpc::{
    self, AdminService, FRAME_DECODED_BYTES_MAX, KeyStoreService, Kind, REQUEST_DECODED_BYTES_MAX, Received,
    keep_until_sent,
};
use crate::memory::Memory;
use crate::peers::PeerService;

/// The descriptors compiled into the binary cannot be read: a broken build.
#[derive(Debug, Error)]
#[error("the descriptors for reflection cannot be read: {0}")]
pub struct ReflectionError(#[from] tonic_reflection::server::Error);

/// The client port. Requests for the store itself skip the router: it is half of what such a call would cost here.
#[derive(Clone)]
pub struct ClientServices {
    memory: Memory,
    key_store: KeyStoreServer<KeyStoreService>,
    others: Routes,
}

impl ClientServices {
    pub async fn new(key_store: KeyStoreService) -> Result<(Self, HealthReporter), ReflectionError> {
        let memory = key_store.memory().clone();
        let key_store = KeyStoreServer::new(key_store).max_decoding_message_size(REQUEST_DECODED_BYTES_MAX);
        let (reporter, health) = grpc::client_health().await;
        let others = Routes::new(key_store.clone()).add_service(health);
        let others = with_reflection(others, &["keystore.v1.KeyStore"])?;
        Ok((Self { memory, key_store, others }, reporter))
    }
}

/// What becomes of each response.
type Sent = fn(Response<Body>) -> Response<Body>;

impl Service<Request<Incoming>> for ClientServices {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<
        MapOk<<KeyStoreServer<KeyStoreService> as Service<Request<Received<Incoming>>>>::Future, Sent>,
        <Routes as Service<Request<Incoming>>>::Future,
    >;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let mut path = request.uri().path().trim_start_matches('/').split('/');
        if path.next() == Some(KEY_STORE) {
            let kind = if path.next() == Some("Session") { Kind::Session } else { Kind::Call };
            let request = request.map(|body| Received::new(body, self.memory.clone(), kind));
            Either::Left(self.key_store.call(request).map_ok(keep_until_sent as Sent))
        } else {
            Either::Right(self.others.call(request))
        }
    }
}

/// The port for other nodes and administrators.
pub async fn peer_services(peers: PeerService, admin: AdminService) -> Result<Routes, ReflectionError> {
    let peers = PeerServer::new(peers).max_decoding_message_size(FRAME_DECODED_BYTES_MAX);
    let routes =
        Routes::new(peers).add_service(AdminServer::new(admin)).add_service(grpc::peer_health().await);
    with_reflection(routes, &["keystore.v1.Peer", "keystore.v1.Admin"])
}

/// Both versions of reflection, listing only what this port has.
fn with_reflection(routes: Routes, services: &[&str]) -> Result<Routes, ReflectionError> {
    let builder = || {
        let mut builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        for service in services {
            builder = builder.with_service_name(*service);
        }
        builder
    };
    let routes = routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?);
    Ok(routes.prepare())
}
