//! One reconcile: observe → validate → plan → apply → status, and what to do when a step fails.
//!
//! What cannot be undone is planned twice: all is read and asked once more right before it is done, and the later plan
//! counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use keystore_crds::KeyStoreCluster;
use keystore_operator_core::children::ChildError;
use keystore_operator_core::invalid::stand_in;
use keystore_operator_core::names::Names;
use keystore_operator_core::observed::{ClusterId, Observed};
use keystore_operator_core::pace::next_look;
use keystore_operator_core::plan::{Plan, PlanInput, plan};
use keystore_operator_core::status::{StatusInput, plan_status};
use keystore_operator_core::validate::{InvalidSpec, ValidCluster, identify, validate};
use kube::runtime::controller::Action;
use thiserror::Error;
use tracing::{Instrument, debug, error_span, warn};

use crate::apply::{Applied, ApplyError, apply, is_namespace_terminating};
use crate::context::{Context, jittered, object_key};
use crate::metrics::Step;
use crate::observe::{ObserveError, observe, observe_cluster};
use crate::report::{ReportError, report};

/// More than every deadline within a reconcile of the largest cluster; nothing may hold a place for ever.
const RECONCILE_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Error)]
pub(crate) enum ReconcileError {
    #[error("observing failed")]
    Observe(#[from] ObserveError),
    #[error("the resource cannot be identified")]
    Identify(#[source] InvalidSpec),
    #[error("planning failed")]
    Plan(#[from] ChildError),
    #[error("applying failed")]
    Apply(#[from] ApplyError),
    #[error("reporting failed")]
    Report(#[from] ReportError),
    #[error("the reconcile took longer than {} s", RECONCILE_MAX.as_secs())]
    Deadline,
}

impl ReconcileError {
    fn step(&self) -> Step {
        match self {
            Self::Observe(_) | Self::Deadline => Step::Observe,
            Self::Identify(_) | Self::Plan(_) => Step::Plan,
            Self::Apply(_) => Step::Apply,
            Self::Report(_) => Step::Status,
        }
    }

    /// The first and the longest wait before the next try.
    fn waits(&self) -> (Duration, Duration) {
        let seconds = |first, most| (Duration::from_secs(first), Duration::from_secs(most));
        match self {
            // Somebody changed the object meanwhile, or a node is still starting: soon is right.
            Self::Report(_) | Self::Apply(ApplyError::Init { .. }) => seconds(1, 15),
            Self::Observe(_) | Self::Deadline => seconds(2, 60),
            Self::Apply(error) if error.rejection().is_some() => seconds(10, 300),
            Self::Apply(_) => seconds(2, 60),
            // Only another version of the resource or of the operator helps.
            Self::Identify(_) | Self::Plan(_) => seconds(60, 600),
        }
    }

    fn is_namespace_terminating(&self) -> bool {
        match self {
            Self::Apply(error) => error.is_namespace_terminating(),
            Self::Report(ReportError::Write { source, .. }) => is_namespace_terminating(source),
            Self::Observe(_) | Self::Identify(_) | Self::Plan(_) | Self::Deadline => false,
        }
    }
}

pub(crate) async fn reconcile(
    cluster: Arc<KeyStoreCluster>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let started = Instant::now();
    let (names, _) = identify(&cluster).map_err(ReconcileError::Identify)?;
    let span = error_span!("reconcile", namespace = names.namespace, cluster = names.cluster);
    let run = tokio::time::timeout(RECONCILE_MAX, run(&context, &names)).instrument(span);
    let result = run.await.unwrap_or(Err(ReconcileError::Deadline));
    context.metrics.reconciled(started.elapsed());
    let action = match result {
        // Deleted since it was looked at: there is nothing left to report of it.
        Err(ReconcileError::Report(error)) if error.is_not_found() => {
            context.forget(&names.namespace, &names.cluster);
            Action::await_change()
        }
        result => result?,
    };
    context.failures.forget(&object_key(&names.namespace, &names.cluster));
    Ok(action)
}

/// What is there, and what is to be done about it.
struct Look {
    cluster: KeyStoreCluster,
    observed: Observed,
    valid: ValidCluster,
    plan: Plan,
}

/// `None` if the resource is gone, or is about to be.
async fn look(context: &Context, names: &Names) -> Result<Option<Look>, ReconcileError> {
    let Some(cluster) = observe_cluster(context, names).await? else {
        context.forget(&names.namespace, &names.cluster);
        return Ok(None);
    };
    if cluster.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let observed = observe(context, names, &cluster).await?;
    let (valid, refused) = match validate(&cluster, &context.node_image) {
        Ok(valid) => (valid, None),
        Err(error) => (stand_in(&cluster, &observed).map_err(ReconcileError::Identify)?, Some(error)),
    };
    let fresh = ClusterId(*uuid::Uuid::new_v4().as_bytes());
    let now = Timestamp::now();
    let mut plan = plan(&PlanInput { cluster: &cluster, valid: &valid, observed: &observed, fresh, now })?;
    if let Some(error) = &refused {
        plan.follow_layout_alone(error);
    }
    Ok(Some(Look { cluster, observed, valid, plan }))
}

async fn run(context: &Context, names: &Names) -> Result<Action, ReconcileError> {
    let mut seen = look(context, names).await?;
    if seen.as_ref().is_some_and(|seen| seen.plan.is_destructive(&seen.observed)) {
        seen = look(context, names).await?;
    }
    let Some(Look { cluster, observed, valid, mut plan }) = seen else { return Ok(Action::await_change()) };
    let Applied { refusal, outcome } = apply(context, names, &observed, &plan).await;
    if let Some(rejection) = outcome.as_ref().err().and_then(ApplyError::rejection) {
        plan.note_rejection(rejection);
    }
    if let Some(refusal) = refusal {
        plan.note_refusal(&refusal);
    }
    let input = StatusInput {
        cluster: &cluster,
        valid: &valid,
        observed: &observed,
        plan: &plan,
        now: Timestamp::now(),
    };
    let status = plan_status(input);
    let reported = report(context, names, &cluster, &status).await;
    // In a namespace that is gone, applying failed too, and that it is gone says why.
    if !reported.as_ref().is_err_and(ReportError::is_not_found) {
        outcome?;
    }
    reported?;
    Ok(Action::requeue(jittered(next_look(&status))))
}

/// Every failure is logged here, once, and tried again after a wait that fits it.
pub(crate) fn on_error(cluster: &KeyStoreCluster, error: &ReconcileError, context: &Context) -> Action {
    let Ok((names, _)) = identify(cluster) else { return Action::await_change() };
    if error.is_namespace_terminating() {
        debug!(namespace = names.namespace, cluster = names.cluster, "namespace is going away");
        return Action::await_change();
    }
    context.metrics.failed(error.step());
    let (first, most) = error.waits();
    let delay = context.failures.delay(&object_key(&names.namespace, &names.cluster), first, most);
    warn!(
        namespace = names.namespace,
        cluster = names.cluster,
        step = error.step().as_str(),
        retry_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        error = error as &dyn std::error::Error,
        "reconcile failed"
    );
    Action::requeue(delay)
}
