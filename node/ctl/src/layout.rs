//! `layout`: shows and makes changes of what all nodes agree upon.
//!
//! Pure parts say which layouts lead to what is wanted (`steps`) and what that moves (`forecast`); the others ask nodes
//! and send. Each change is proposed for the epoch that was seen: if somebody else is first, it is refused, and nothing
//! is tried again by itself.

mod join;
pub(crate) mod steps;
mod forecast;
mod decide;
mod settle;
mod wait;
mod history;

use std::collections::BTreeSet;
use std::time::Duration;

use keystore_client::{ClusterId, Layout, Member};
use serde::Serialize;
use tokio::time::Instant;

use crate::args::{Globals, LayoutCommand, Manner, Output, Wanted};
use crate::failure::{Exit, Failure};
use crate::live::Live;
use crate::output::{print_json, print_line};
use crate::survey::{self, Answer, Survey};
use crate::transfer::phase_name;
use forecast::{Forecast, PlanReport};
use steps::Steps;

/// How long new members have, where nobody has said how long it may take.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than a node tries to have a layout decided.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) async fn layout(globals: &Globals, command: LayoutCommand) -> Result<(), Failure> {
    match command {
        LayoutCommand::Plan(change) => plan(globals, &change.into()).await,
        LayoutCommand::Propose { change, manner } => propose(globals, change.into(), manner).await,
        LayoutCommand::History => history::history(globals).await,
        LayoutCommand::Abort => propose(globals, Wanted::Abort, Manner::default()).await,
    }
}

/// What was seen before anything is decided.
struct Seen {
    survey: Survey,
    now: Layout,
    joining: Vec<Answer>,
}

impl Seen {
    async fn look(globals: &Globals, wanted: &Wanted) -> Result<Self, Failure> {
        let survey = survey::ask_all(globals).await?;
        let clusters: BTreeSet<ClusterId> =
            survey.answers.iter().filter_map(|answer| answer.status.cluster).collect();
        if clusters.len() > 1 {
            let problem = "the endpoints lead to nodes of different clusters; nothing was done";
            return Err(Failure::new(Exit::Refused, "WRONG_CLUSTER", problem));
        }
        let now = survey.layout_of_cluster().await?;
        let joining = match wanted {
            Wanted::Nodes { joining, .. } => join::ask(&joining.join, &now, globals.timeout()).await?,
            _ => Vec::new(),
        };
        Ok(Self { survey, now, joining })
    }

    fn steps(&self, wanted: &Wanted) -> Result<Steps, Failure> {
        let joining: Vec<Member> = self.joining.iter().map(|answer| join::member(&answer.status)).collect();
        Steps::plan(&self.now, wanted, &joining, &self.survey.away())
    }
}

async fn plan(globals: &Globals, wanted: &Wanted) -> Result<(), Failure> {
    let seen = Seen::look(globals, wanted).await?;
    let steps = seen.steps(wanted)?;
    let statuses = seen.survey.answers.iter().map(|answer| &answer.status);
    let forecast = Forecast::of(&seen.now, steps.last().unwrap_or(&seen.now), statuses);
    let waits_for = match wanted {
        Wanted::Finish => seen.survey.newest().and_then(|answer| answer.status.transfer.waits_for.clone()),
        _ => None,
    };
    let waits_for = waits_for.map(|problem| seen.now.with_names(&problem));
    let report = PlanReport::new(&seen.now, &steps, forecast, waits_for);
    match globals.output {
        Output::Json => print_json(&report),
        Output::Table => print_line(&report.text()),
    }
}

/// Until when a command may go on, and how.
struct Bounds {
    /// `None`: for as long as it takes.
    until: Option<Instant>,
    settle_until: Instant,
    proposal_timeout: Duration,
    live: Live,
}

impl Bounds {
    fn new(globals: &Globals, manner: Manner) -> Self {
        let now = Instant::now();
        let until = globals.given_timeout.filter(|_| manner.wait).map(|timeout| now + timeout);
        let proposal_timeout = match manner.wait {
            true => PROPOSAL_TIMEOUT,
            false => globals.given_timeout.unwrap_or(PROPOSAL_TIMEOUT),
        };
        let settle_until = until.unwrap_or(now + SETTLE_TIMEOUT);
        Self { until, settle_until, proposal_timeout, live: Live::choose(manner.quiet) }
    }
}

async fn propose(globals: &Globals, wanted: Wanted, manner: Manner) -> Result<(), Failure> {
    let bounds = Bounds::new(globals, manner);
    let globals = &if manner.wait { globals.with_short_requests() } else { globals.clone() };
    let seen = Seen::look(globals, &wanted).await?;
    let steps = seen.steps(&wanted)?;
    let Seen { mut survey, mut now, joining } = seen;
    let bytes_before = survey.answers.iter().map(|answer| answer.status.transfer.bytes).sum();
    let epoch_seen = now.epoch;
    // To wait for the end of a move is to wait until it can be finished.
    let only_waits = manner.wait && matches!(wanted, Wanted::Finish);
    if !only_waits {
        joining.into_iter().for_each(|answer| survey.add(answer));
        now = make(&steps, now, &mut survey, &bounds).await?;
    }
    if manner.wait && now.is_moving() {
        bounds.live.say(&format!("epoch {}, {}: data moves", now.epoch, phase_name(&now)));
        now = wait::until_it_ends(&mut survey, now, bytes_before, &bounds).await?;
    }
    bounds.live.clear();
    report(globals.output, &now, now.epoch > epoch_seen)
}

/// Has each step decided in turn; returns the layout in force.
async fn make(steps: &Steps, seen: Layout, survey: &mut Survey, bounds: &Bounds) -> Result<Layout, Failure> {
    let Some(admission) = &steps.admission else {
        return change(steps, seen, survey, bounds).await;
    };
    decide_next(survey, (&seen, admission), bounds).await?;
    let names = steps.admitted(&seen);
    bounds.live.say(&format!("epoch {} decided: {names} admitted", admission.epoch));
    let settled = settle::until_acknowledged(survey, admission, bounds.settle_until).await;
    let changed = match settled {
        Ok(()) => change(steps, admission.clone(), survey, bounds).await,
        Err(failure) => Err(failure),
    };
    changed.map_err(|failure| {
        let message = format!(
            "{names} became members with epoch {} and hold nothing; to go on, name them without --join: {}",
            admission.epoch, failure.message
        );
        Failure { message, ..failure }
    })
}

async fn change(steps: &Steps, now: Layout, survey: &Survey, bounds: &Bounds) -> Result<Layout, Failure> {
    let Some(change) = &steps.change else { return Ok(now) };
    decide_next(survey, (&now, change), bounds).await?;
    Ok(change.clone())
}

async fn decide_next(survey: &Survey, of: (&Layout, &Layout), bounds: &Bounds) -> Result<(), Failure> {
    let newest = survey.newest().ok_or_else(|| decide::nobody(survey))?;
    decide::decide(&newest.admin, of, bounds.proposal_timeout).await
}

#[derive(Serialize)]
struct Decided {
    epoch: u64,
    phase: &'static str,
    /// False if nothing had to be changed.
    changed: bool,
}

fn report(output: Output, layout: &Layout, changed: bool) -> Result<(), Failure> {
    let (epoch, phase) = (layout.epoch.0, phase_name(layout));
    match output {
        Output::Json => print_json(&Decided { epoch, phase, changed }),
        Output::Table if changed => print_line(&format!("epoch {epoch}, {phase}")),
        Output::Table => print_line(&format!("epoch {epoch}, {phase}: nothing would change")),
    }
}
