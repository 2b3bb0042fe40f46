//! `grpc.health.v1` on both ports.
//!
//! On the client port `""` and `keystore.v1.KeyStore` say what `/readyz` says. On the peer port the process itself
//! is meant: it serves while it lives, or an uninitialised node could not be given its first layout.

use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::handle::CoreHandle;

const CLIENT_SERVICES: [&str; 2] = ["", "keystore.v1.KeyStore"];
const PEER_SERVICES: [&str; 3] = ["", "keystore.v1.Peer", "keystore.v1.Admin"];

/// Not serving until told otherwise.
pub async fn client_health() -> (HealthReporter, HealthServer<impl Health>) {
    let (reporter, server) = health_reporter();
    report(&reporter, &CLIENT_SERVICES, false).await;
    (reporter, server)
}

/// Serving for as long as anybody can ask.
pub async fn peer_health() -> HealthServer<impl Health> {
    let (reporter, server) = health_reporter();
    report(&reporter, &PEER_SERVICES, true).await;
    server
}

/// Passes on whether the node serves.
pub async fn follow_readiness(reporter: HealthReporter, core: CoreHandle, cancelled: CancellationToken) {
    let (mut view, mut stopping) = (core.watch_view(), core.watch_stopping());
    let mut shown = false;
    loop {
        view.mark_unchanged();
        let serves = core.obstacle().is_none();
        if serves != shown {
            report(&reporter, &CLIENT_SERVICES, serves).await;
            shown = serves;
        }
        tokio::select! {
            () = cancelled.cancelled() => return,
            Ok(()) = view.changed() => {}
            Ok(()) = stopping.changed() => {}
            else => return,
        }
    }
}

async fn report(reporter: &HealthReporter, services: &[&str], serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in services {
        reporter.set_service_status(*service, status).await;
    }
}
