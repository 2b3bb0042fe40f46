//! Many figures as few: medians, spreads, fairness, ratios, where throughput no longer grows. Pure.

use serde::{Deserialize, Serialize};

/// More clients that bring less than this are no reason to look for a peak further.
const GROWTH_MIN: f64 = 1.05;

/// Of an even number, the lower one of the two in the middle; 0 of none.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// `None` where there is nothing to compare with.
pub(crate) fn ratio(figure: f64, other: f64) -> Option<f64> {
    Some(figure / other).filter(|ratio| ratio.is_finite())
}

/// The lowest, the one in the middle, and the highest; zeros of none.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

pub(crate) fn spread(figures: &[f64]) -> Spread {
    let lowest = figures.iter().copied().min_by(f64::total_cmp);
    let highest = figures.iter().copied().max_by(f64::total_cmp);
    match lowest.zip(highest) {
        Some((min, max)) => Spread { min, median: median(figures.to_vec()), max },
        None => Spread::default(),
    }
}

/// Jain's index of fairness: 1 if all have got the same, 1/n if one has got everything. (R. Jain, D. Chiu, W. Hawe:
/// A Quantitative Measure of Fairness and Discrimination, 1984.) `None` if nobody has got anything.
pub(crate) fn jain_index(figures: &[f64]) -> Option<f64> {
    let sum: f64 = figures.iter().sum();
    let squares: f64 = figures.iter().map(|figure| figure * figure).sum();
    ratio(sum * sum, figures.len() as f64 * squares)
}

/// What each target has completed for each of its clients; clients are dealt out to targets in turn.
pub(crate) fn completed_per_share(by_client: &[u64], targets: usize) -> Vec<f64> {
    let of = |target: usize| {
        let counts: Vec<_> = by_client.iter().skip(target).step_by(targets.max(1)).collect();
        counts.iter().copied().sum::<u64>() as f64 / (counts.len() as f64).max(1.0)
    };
    (0..targets.min(by_client.len())).map(of).collect()
}

/// True once the last two of these, of ever more clients, say that yet more bring nothing.
pub(crate) fn is_saturated(per_second: &[f64]) -> bool {
    match per_second {
        [.., before, last] => *last < before * GROWTH_MIN,
        _ => false,
    }
}

/// How many should have arrived by now, of so many a second.
pub(crate) fn arrivals_due(seconds: f64, per_second: f64) -> u64 {
    (seconds * per_second) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_what_half_of_the_rounds_stay_below() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.0);
        assert_eq!(median(vec![7.0]), 7.0);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn a_ratio_to_nothing_is_none() {
        assert_eq!(ratio(3.0, 2.0), Some(1.5));
        assert_eq!(ratio(3.0, 0.0), None);
        assert_eq!(ratio(0.0, 0.0), None);
    }

    #[test]
    fn a_spread_has_both_ends_and_the_middle() {
        assert_eq!(spread(&[5.0, 1.0, 3.0]), Spread { min: 1.0, median: 3.0, max: 5.0 });
        assert_eq!(spread(&[]), Spread::default());
    }

    #[test]
    fn fairness_is_one_for_equals_and_one_of_n_for_a_glutton() {
        assert_eq!(jain_index(&[4.0, 4.0, 4.0, 4.0]), Some(1.0));
        assert_eq!(jain_index(&[8.0, 0.0, 0.0, 0.0]), Some(0.25));
        assert_eq!(jain_index(&[1.0, 3.0]), Some(0.8));
        assert_eq!(jain_index(&[0.0, 0.0]), None);
        assert_eq!(jain_index(&[]), None);
    }

    #[test]
    fn a_connection_with_more_requests_in_flight_has_the_same_share_of_each() {
        // Five clients over two connections: the first has three of them.
        assert_eq!(completed_per_share(&[10, 10, 10, 10, 10], 2), [10.0, 10.0]);
        assert_eq!(completed_per_share(&[9, 4, 0, 2, 0], 2), [3.0, 3.0]);
        assert_eq!(completed_per_share(&[1], 2), [1.0], "a connection without clients has no share");
        assert!(completed_per_share(&[], 0).is_empty());
    }

    #[test]
    fn a_system_is_saturated_when_more_clients_bring_nothing() {
        assert!(!is_saturated(&[]));
        assert!(!is_saturated(&[100.0]));
        assert!(!is_saturated(&[100.0, 150.0]));
        assert!(is_saturated(&[100.0, 150.0, 152.0]));
        assert!(is_saturated(&[100.0, 90.0]));
    }

    #[test]
    fn arrivals_keep_to_their_rate() {
        assert_eq!(arrivals_due(0.0, 1_000.0), 0);
        assert_eq!(arrivals_due(0.5, 1_000.0), 500);
        assert_eq!(arrivals_due(1.0, 0.5), 0);
    }
}
