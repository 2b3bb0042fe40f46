//! Keys that are asked for as in most stores: a few very often, most of them hardly ever.
//!
//! Drawn by rejection-inversion (W. Hörmann, G. Derflinger: Rejection-inversion to generate variates from monotone
//! discrete distributions, 1996): exact, and as fast for four billion keys as for ten.

use rand::Rng;

/// YCSB's constant. Below 1: the integral has another form there.
const EXPONENT: f64 = 0.99;

/// The numbers from 0 to below `count`, N with a probability in proportion to 1 / (N + 1)^0.99.
#[derive(Debug, Clone)]
pub(super) struct Zipf {
    count: u32,
    /// The area below the hat, from its begin to its end.
    area: (f64, f64),
    /// What is drawn so close below a rank surely belongs to it.
    squeeze: f64,
}

impl Zipf {
    pub(super) fn new(count: u32) -> Self {
        let area = (integral(1.5) - 1.0, integral(f64::from(count) + 0.5));
        Self { count, area, squeeze: 2.0 - inverse(integral(2.5) - density(2.0)) }
    }

    pub(super) fn draw(&self, random: &mut impl Rng) -> u32 {
        let (low, high) = self.area;
        loop {
            let drawn = high + random.random::<f64>() * (low - high);
            let x = inverse(drawn);
            let rank = x.round().clamp(1.0, f64::from(self.count));
            if rank - x <= self.squeeze || drawn >= integral(rank + 0.5) - density(rank) {
                return rank as u32 - 1;
            }
        }
    }
}

fn density(x: f64) -> f64 {
    (-EXPONENT * x.ln()).exp()
}

/// Of the density, from 1 to x.
fn integral(x: f64) -> f64 {
    ((1.0 - EXPONENT) * x.ln()).exp_m1() / (1.0 - EXPONENT)
}

fn inverse(area: f64) -> f64 {
    (((1.0 - EXPONENT) * area).ln_1p() / (1.0 - EXPONENT)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    const DRAWS: u32 = 400_000;

    fn draw(count: u32) -> Vec<u32> {
        let (zipf, mut random) = (Zipf::new(count), SmallRng::seed_from_u64(7));
        (0..DRAWS).map(|_| zipf.draw(&mut random)).collect()
    }

    #[test]
    fn every_number_comes_as_often_as_its_rank_says() {
        for count in [1, 2, 3, 10, 1000] {
            let drawn = draw(count);
            let sum: f64 = (1..=count).map(|rank| f64::from(rank).powf(-0.99)).sum();
            for number in [0, 1, 2, 4, 9, 99, 999].into_iter().filter(|number| *number < count) {
                let expected = f64::from(DRAWS) * f64::from(number + 1).powf(-0.99) / sum;
                let came = drawn.iter().filter(|drawn| **drawn == number).count() as f64;
                // Five standard deviations.
                assert!((came - expected).abs() <= 5.0 * expected.sqrt(), "{number} of {count}: {came}");
            }
            assert!(drawn.iter().all(|drawn| *drawn < count));
        }
    }

    #[test]
    fn a_few_of_very_many_keys_are_asked_for_most_often() {
        let drawn = draw(u32::MAX);
        let share =
            |below: u32| drawn.iter().filter(|drawn| **drawn < below).count() as f64 / f64::from(DRAWS);
        // The sum over n ranks is about the integral to n, plus Euler's constant.
        assert!((0.035..0.045).contains(&share(1)), "{}", share(1));
        assert!((0.48..0.53).contains(&share(100_000)), "{}", share(100_000));
        assert!(drawn.iter().any(|drawn| *drawn > 1 << 30));
    }
}
