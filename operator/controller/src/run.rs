//! Starts the operator's tasks and ends them: the HTTP server, and the controller for as long as this process leads.
//!
//! A task that ends before it was told to ends the process, and so does the loss of the leadership, at once. On SIGTERM
//! the reconciles that run are finished first, and then the leadership is given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keystore_crds::KeyStoreCluster;
use keystore_operator_core::names::{CLUSTER_LABEL, FIELD_MANAGER, PEER_PORT};
use kube::core::PartialObjectMeta;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, controller, watcher};
use kube::{Api, Client, Config, ResourceExt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::Options;
use crate::context::{Context, Failures};
use crate::http::{Health, router};
use crate::leadership::Leadership;
use crate::lease::LeaseKeeper;
use crate::metrics::Metrics;
use crate::nodes::GrpcNodes;
use crate::reconcile::{on_error, reconcile};

/// How many clusters are reconciled at the same time.
const CONCURRENCY: u16 = 8;

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let listener = TcpListener::bind(options.http_listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.http_listen))?;
    let config = Config::infer().await.context("cannot find the API server")?;
    let leadership = Leadership::default();
    let client = leadership.client(config.clone()).context("cannot reach the API server")?;
    let metrics = Arc::new(Metrics::new());
    let health = Health { metrics: metrics.clone(), is_ready: Arc::new(AtomicBool::new(false)) };
    let ungated = Client::try_from(config).context("cannot reach the API server")?;
    let lease = LeaseKeeper::new(ungated, identity(), leadership.clone(), metrics.clone());
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), FIELD_MANAGER.into()),
        client,
        leadership,
        nodes: Arc::new(GrpcNodes { port: PEER_PORT }),
        metrics,
        node_image: options.node_image,
        failures: Failures::default(),
    });
    info!(version = env!("CARGO_PKG_VERSION"), node_image = context.node_image, "operator starts");
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_http(listener, health.clone(), stop.clone()));
    tasks.spawn(lead(context, lease, health, stop.clone()));
    let ended_early = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = tasks.join_next() => ended,
    };
    info!("operator stops");
    if let Some(ended) = ended_early {
        // At once: nothing of a process that has lost the lead, or a part of itself, is worth waiting for.
        tasks.shutdown().await;
        ended.context("a task failed")??;
        anyhow::bail!("a task ended before it was told to");
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task failed")??;
    }
    Ok(())
}

async fn serve_http(listener: TcpListener, health: Health, stop: CancellationToken) -> anyhow::Result<()> {
    let stopped = async move { stop.cancelled().await };
    axum::serve(listener, router(health))
        .with_graceful_shutdown(stopped)
        .await
        .context("the HTTP server failed")
}

/// The pod's name, for people, and something that no other process ever had.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| FIELD_MANAGER.to_owned());
    format!("{host}_{}", uuid::Uuid::new_v4())
}

/// Stands by until this process leads, works while it does, and gives the Lease back once nothing is under way.
async fn lead(
    context: Arc<Context>,
    mut lease: LeaseKeeper,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let is_ready = health.is_ready.clone();
    if !lease.campaign(&stop, || is_ready.store(true, Ordering::Release)).await {
        return Ok(());
    }
    tokio::select! {
        // Dropping what is under way: another operator leads, or is about to.
        lost = lease.keep() => return Err(lost.into()),
        ended = control(context, health, stop) => ended?,
    }
    lease.release().await;
    Ok(())
}

pub(crate) async fn control(
    context: Arc<Context>,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let controller = watch(&context.client)
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(stop.clone().cancelled_owned());
    let store = controller.store();
    let become_ready = async {
        if store.wait_until_ready().await.is_ok() {
            health.is_ready.store(true, Ordering::Release);
            info!("operator is ready");
        }
        std::future::pending::<()>().await;
    };
    // Failed reconciles were logged by `on_error`; what is left are the watches' own troubles.
    let on_error =
        |cluster: Arc<KeyStoreCluster>, error: &_, context: Arc<Context>| on_error(&cluster, error, &context);
    let of_gone = context.clone();
    let reconciles = controller.run(reconcile, on_error, context).for_each(|result| async {
        match result {
            Ok(_) | Err(controller::Error::ReconcilerFailed(..)) => {}
            // A child of a resource that is gone.
            Err(controller::Error::ObjectNotFound(cluster)) => {
                of_gone.forget(cluster.namespace.as_deref().unwrap_or_default(), &cluster.name);
            }
            Err(error) => warn!(error = &error as &dyn std::error::Error, "watch failed"),
        }
    });
    tokio::select! {
        () = reconciles => Ok(()),
        () = become_ready => Ok(()),
    }
}

/// What calls for a reconcile. Of children only the metadata is watched, and of all objects only ours.
fn watch(client: &Client) -> Controller<KeyStoreCluster> {
    let ours = || watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={FIELD_MANAGER}"));
    let all = client;
    Controller::new(Api::all(all.clone()), watcher::Config::default())
        .owns(Api::<StatefulSet>::all(all.clone()), ours())
        .owns(Api::<Service>::all(all.clone()), ours())
        .owns(Api::<ServiceAccount>::all(all.clone()), ours())
        .owns(Api::<ConfigMap>::all(all.clone()), ours())
        .owns(Api::<PodDisruptionBudget>::all(all.clone()), ours())
        .watches(Api::<PartialObjectMeta<Pod>>::all(all.clone()), ours(), |pod| cluster_of(&pod))
}

/// Pods belong to the StatefulSet; a label says to which cluster.
fn cluster_of(pod: &PartialObjectMeta<Pod>) -> Option<ObjectRef<KeyStoreCluster>> {
    let name = pod.labels().get(CLUSTER_LABEL)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}
