//! Runs for the leadership, keeps it, and gives it back: the I/O around `operator-core`'s `lease`.
//!
//! Invariant: the right to write is counted from before a renewal was sent, so it ends here before anybody else may
//! begin. Losing it is final for the process: the caller exits, and whatever was under way goes with it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use keystore_operator_core::lease::{
    Election, LEASE, LOOKED_AT_EVERY, Moment, RENEWED_EVERY, Verdict, WRITES_WITHIN, released,
};
use kube::api::PostParams;
use kube::{Api, Client};
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::context::jittered;
use crate::leadership::Leadership;
use crate::metrics::Metrics;

/// No request for the Lease takes longer: a server that does not answer is one that cannot be reached.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Between tries of a renewal that failed.
const RETRIED_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
pub(crate) enum LeaseError {
    #[error("cannot read Lease {LEASE}")]
    Read(#[source] kube::Error),
    #[error("cannot write Lease {LEASE}")]
    Write(#[source] kube::Error),
    #[error("no answer about Lease {LEASE} within {} s", REQUEST_MAX.as_secs())]
    Silence,
}

/// Why this process leads no longer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Lost {
    #[error("the leadership is lost: {holder} leads now")]
    Taken { holder: String },
    #[error("the leadership is lost: the Lease could not be renewed for {} s", WRITES_WITHIN.as_secs())]
    Expired,
}

enum Standing {
    Leads,
    Follows { holder: String },
}

pub(crate) struct LeaseKeeper {
    api: Api<Lease>,
    election: Election,
    leadership: Leadership,
    metrics: Arc<Metrics>,
    started: Instant,
    /// As it was written last by us.
    held: Option<Lease>,
}

impl LeaseKeeper {
    /// `client` is one without the gate: the Lease is what is written before anything is led.
    pub(crate) fn new(client: Client, me: String, leadership: Leadership, metrics: Arc<Metrics>) -> Self {
        Self {
            api: Api::default_namespaced(client),
            election: Election::new(me),
            leadership,
            metrics,
            started: Instant::now(),
            held: None,
        }
    }

    /// Returns when this process leads, or when it is told to stop (false). `following` is called at each look that
    /// found somebody else leading.
    pub(crate) async fn campaign(&mut self, stop: &CancellationToken, following: impl Fn()) -> bool {
        let mut leader = String::new();
        loop {
            match self.run_once().await {
                Ok(Standing::Leads) => {
                    self.metrics.show_leading(true);
                    info!(lease = LEASE, identity = self.election.me(), "leadership gained");
                    return true;
                }
                Ok(Standing::Follows { holder }) => {
                    following();
                    if leader != holder {
                        info!(lease = LEASE, identity = self.election.me(), holder, "another operator leads");
                        leader = holder;
                    }
                }
                // Another one was quicker: the next look says who.
                Err(LeaseError::Write(kube::Error::Api(status))) if status.code == 409 => {
                    debug!(lease = LEASE, identity = self.election.me(), "another operator was quicker");
                }
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "the lease cannot be had");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = sleep(jittered(LOOKED_AT_EVERY)) => {}
            }
        }
    }

    /// Renews for as long as that works, and says why it no longer did.
    pub(crate) async fn keep(&mut self) -> Lost {
        let lost = self.renew_on().await;
        self.leadership.end();
        self.metrics.show_leading(false);
        error!(
            lease = LEASE,
            identity = self.election.me(),
            error = &lost as &dyn std::error::Error,
            "leadership lost"
        );
        lost
    }

    async fn renew_on(&mut self) -> Lost {
        let mut pause = RENEWED_EVERY;
        loop {
            let Some(until) = self.leadership.until() else { return Lost::Expired };
            let renewal = async {
                sleep(pause).await;
                self.renew().await
            };
            let renewed = tokio::select! {
                renewed = renewal => renewed,
                () = sleep_until(until) => return Lost::Expired,
            };
            pause = match renewed {
                Ok(Standing::Leads) => RENEWED_EVERY,
                Ok(Standing::Follows { holder }) => return Lost::Taken { holder },
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "the lease cannot be renewed");
                    RETRIED_EVERY
                }
            };
        }
    }

    /// Gives the Lease back; to be called once nothing is under way any more.
    pub(crate) async fn release(&mut self) {
        self.leadership.end();
        self.metrics.show_leading(false);
        let Some(held) = self.held.take() else { return };
        match self.write(&released(&held)).await {
            Ok(_) => info!(lease = LEASE, identity = self.election.me(), "leadership given back"),
            // It runs out by itself.
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "the lease was not given back");
            }
        }
    }

    /// One request in the usual case: what was written last is written again with a new time.
    async fn renew(&mut self) -> Result<Standing, LeaseError> {
        let Some(held) = self.held.clone() else { return self.run_once().await };
        match self.stand(Some(&held)).await {
            // Somebody has changed it, if only its labels, or it is gone: a look says which.
            Err(LeaseError::Write(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                self.run_once().await
            }
            stands => stands,
        }
    }

    async fn run_once(&mut self) -> Result<Standing, LeaseError> {
        let live = timeout(REQUEST_MAX, self.api.get_opt(LEASE)).await.map_err(|_| LeaseError::Silence)?;
        self.stand(live.map_err(LeaseError::Read)?.as_ref()).await
    }

    async fn stand(&mut self, live: Option<&Lease>) -> Result<Standing, LeaseError> {
        let begun = Instant::now();
        let moment = Moment { steady: begun - self.started, wall: Timestamp::now() };
        match self.election.look(live, moment) {
            Verdict::Follow { holder } => Ok(Standing::Follows { holder }),
            Verdict::Claim(lease) => {
                self.held = Some(self.write(&lease).await?);
                self.leadership.extend(begun + WRITES_WITHIN);
                Ok(Standing::Leads)
            }
        }
    }

    async fn write(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        let params = PostParams::default();
        self.metrics.writing("Lease");
        let written = async {
            match lease.metadata.resource_version {
                Some(_) => self.api.replace(LEASE, &params, lease).await,
                None => self.api.create(&params, lease).await,
            }
        };
        timeout(REQUEST_MAX, written).await.map_err(|_| LeaseError::Silence)?.map_err(LeaseError::Write)
    }
}
