//! Waiting for something to become true, and watching that something stays true; always with a deadline.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often something that is to stay true is looked at.
pub const WATCH_PAUSE: Duration = Duration::from_millis(500);

/// What one look has found.
pub enum Look<T> {
    Done(T),
    /// What is missing, for the message at the deadline.
    NotYet(String),
}

/// `Done` if nothing is missing.
impl From<Result<(), String>> for Look<()> {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Self::NotYet, Self::Done)
    }
}

/// Looks again and again, ever more slowly, until the look is `Done`. An error is a look without a result.
pub async fn until<T, F, L>(what: impl Display, within: Duration, look: F) -> Result<T>
where
    F: FnMut() -> L,
    L: Future<Output = Result<Look<T>>>,
{
    until_at_pace(what, within, PAUSE_MAX, look).await
}

/// As `until`, without becoming slower: for what is soon over.
pub async fn until_promptly<T, F, L>(what: impl Display, within: Duration, look: F) -> Result<T>
where
    F: FnMut() -> L,
    L: Future<Output = Result<Look<T>>>,
{
    until_at_pace(what, within, PAUSE_MIN, look).await
}

async fn until_at_pace<T, F, L>(
    what: impl Display,
    within: Duration,
    pause_max: Duration,
    mut look: F,
) -> Result<T>
where
    F: FnMut() -> L,
    L: Future<Output = Result<Look<T>>>,
{
    let started = Instant::now();
    let mut pause = PAUSE_MIN;
    let mut missing = "no look ended".to_owned();
    loop {
        match timeout_at(started + within, look()).await {
            Ok(Ok(Look::Done(result))) => return Ok(result),
            Ok(Ok(Look::NotYet(what))) => missing = what,
            Ok(Err(error)) => missing = format!("{error:#}"),
            Err(_) => {}
        }
        if started.elapsed() + pause >= within {
            bail!("{what}: not within {} s: {missing}", within.as_secs());
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(pause_max);
    }
}

/// Looks until the result has stayed the same for `period`.
pub async fn until_steady<T, F, L>(
    what: impl Display,
    period: Duration,
    within: Duration,
    mut look: F,
) -> Result<T>
where
    T: PartialEq,
    F: FnMut() -> L,
    L: Future<Output = Result<T>>,
{
    let started = Instant::now();
    let mut steady = (look().await?, Instant::now());
    while steady.1.elapsed() < period {
        if started.elapsed() >= within {
            bail!("{what}: not within {} s", within.as_secs());
        }
        sleep(WATCH_PAUSE).await;
        let now = look().await?;
        if now != steady.0 {
            steady = (now, Instant::now());
        }
    }
    Ok(steady.0)
}

/// Looks all along and fails as soon as a look does.
pub async fn throughout<F, L>(what: impl Display, period: Duration, mut look: F) -> Result<()>
where
    F: FnMut() -> L,
    L: Future<Output = Result<()>>,
{
    let started = Instant::now();
    while started.elapsed() < period {
        if let Err(error) = look().await {
            bail!("{what}: no longer after {} ms: {error:#}", started.elapsed().as_millis());
        }
        sleep(WATCH_PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_when_the_look_is_done() {
        let mut looks = 0;
        let found = until("three looks", Duration::from_secs(60), || {
            looks += 1;
            let look = if looks < 3 { Look::NotYet(format!("{looks} looks")) } else { Look::Done(looks) };
            async { Ok(look) }
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_comes_with_what_was_missing_last() {
        let started = Instant::now();
        let look = || async { Ok(Look::<()>::NotYet("two of three pods".into())) };
        let error = until("the pods", Duration::from_secs(10), look).await.unwrap_err().to_string();
        assert_eq!(error, "the pods: not within 10 s: two of three pods");
        assert!(started.elapsed() <= Duration::from_secs(10));
        let hangs = || std::future::pending::<Result<Look<()>>>();
        assert!(until("a look that hangs", Duration::from_secs(10), hangs).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_to_rest_is_told_from_what_never_does() {
        let (period, within) = (Duration::from_secs(5), Duration::from_secs(60));
        let mut looks = 0;
        let settles = until_steady("a count", period, within, || {
            looks += 1;
            let count = looks.min(7);
            async move { Ok(count) }
        });
        assert_eq!(settles.await.unwrap(), 7);
        let mut looks = 0;
        let restless = until_steady("a count", period, within, || {
            looks += 1;
            let count = looks;
            async move { Ok(count) }
        });
        assert_eq!(restless.await.unwrap_err().to_string(), "a count: not within 60 s");
    }

    #[tokio::test(start_paused = true)]
    async fn what_stops_being_true_is_noticed() {
        let mut looks = 0;
        let result = throughout("calm", Duration::from_secs(10), || {
            looks += 1;
            let calm = looks < 5;
            async move { if calm { Ok(()) } else { bail!("a storm") } }
        });
        assert_eq!(result.await.unwrap_err().to_string(), "calm: no longer after 2000 ms: a storm");
        throughout("calm", Duration::from_secs(10), || async { Ok(()) }).await.unwrap();
    }
}
