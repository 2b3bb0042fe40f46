//! Explores a model until nothing is left or a rule turns out to be broken, and says what it has seen.

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

/// How far the states are explored: the larger, the more crashes, attempts and nodes. The tests of each commit take 0;
/// `KEYSTORE_MODEL_DEPTH=1` is for whoever changes the rules, and takes many minutes and gigabytes.
pub(crate) fn depth() -> u8 {
    std::env::var("KEYSTORE_MODEL_DEPTH").ok().and_then(|depth| depth.parse().ok()).unwrap_or(0)
}

/// No exploration of a commit's tests takes longer; one that is cut short fails.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Nor makes more states, those counted that were there before.
const STATES_MAX: usize = 10_000_000;

/// The name of a property that does not hold, with the steps that lead there.
pub(crate) type Violation = Option<(&'static str, String)>;

/// Explores breadth first on one thread, up to the first violation.
pub(crate) fn explore<M>(name: &str, model: M) -> (Violation, usize)
where
    M: Model + Send + Sync + 'static,
    M::State: std::fmt::Debug + std::hash::Hash + Send + Sync + Clone + PartialEq + 'static,
    M::Action: std::fmt::Debug + Clone + PartialEq,
{
    let began = Instant::now();
    let time_max = TIME_MAX * if depth() > 0 { 60 } else { 1 };
    let states_max = STATES_MAX << (4 * depth());
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(states_max)
        .timeout(time_max)
        .spawn_bfs()
        .join();
    let states = checker.unique_state_count();
    let elapsed = began.elapsed();
    println!("{name}: {states} states, {} steps deep, {} ms", checker.max_depth(), elapsed.as_millis());
    let violation = checker.discoveries().into_iter().next();
    let is_whole = elapsed < time_max && checker.state_count() < states_max;
    assert!(violation.is_some() || is_whole, "{name}: not explored to its end");
    let steps = |path: stateright::Path<M::State, M::Action>| {
        let step = |action: &M::Action| format!("\n  {}", checker.model().format_action(action));
        path.into_actions().iter().map(step).collect::<String>()
    };
    (violation.map(|(property, path)| (property, steps(path))), states)
}
