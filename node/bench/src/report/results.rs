//! What one or several runs have measured, as JSON: parts that a later run has measured again take the place of earlier
//! ones. Merging is pure.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::comparison::Comparison;
use crate::figures::Figures;
use crate::growth::Growth;
use crate::machine::Machine;
use crate::meter::DISTURBANCE_MAX;
use crate::moving::Moving;
use crate::stress::Stress;
use crate::table::Table;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) compare: Option<Comparison>,
    pub(crate) figures: Option<Figures>,
    pub(crate) stress: Option<Stress>,
    /// One for each engine.
    pub(crate) growth: Vec<Growth>,
    /// The same.
    #[serde(default)]
    pub(crate) moving: Vec<Moving>,
}

impl Results {
    pub(crate) fn on(machine: Machine) -> Self {
        Self { machine, compare: None, figures: None, stress: None, growth: Vec::new(), moving: Vec::new() }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} holds no results", path.display()))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Figures of two machines, or of two versions, are no report.
    pub(crate) fn with(self, later: Self) -> Result<Self> {
        let Self { machine, compare, figures, stress, growth, moving } = later;
        ensure!(
            self.machine == machine,
            "these were measured on different machines or with different versions: {:?} and {machine:?}",
            self.machine
        );
        let is_kept = |earlier: &Growth| growth.iter().all(|later| later.engine != earlier.engine);
        let kept = self.growth.into_iter().filter(is_kept).collect::<Vec<_>>();
        let is_not_repeated = |earlier: &Moving| moving.iter().all(|later| later.engine != earlier.engine);
        let kept_moving = self.moving.into_iter().filter(is_not_repeated).collect::<Vec<_>>();
        Ok(Self {
            machine,
            compare: compare.or(self.compare),
            figures: figures.or(self.figures),
            stress: stress.or(self.stress),
            growth: kept.into_iter().chain(growth).collect(),
            moving: kept_moving.into_iter().chain(moving).collect(),
        })
    }

    pub(crate) fn tables(&self) -> Vec<Table> {
        let compare = self.compare.iter().flat_map(|compare| [compare.table(), compare.budget_table()]);
        let figures = self.figures.iter().flat_map(Figures::tables);
        let stress = self.stress.iter().flat_map(Stress::tables);
        let growth = self.growth.iter().flat_map(Growth::tables);
        let moving = self.moving.iter().flat_map(Moving::tables);
        compare.chain(figures).chain(stress).chain(growth).chain(moving).collect()
    }

    /// The worst: what others used meanwhile, as a share of one core.
    fn disturbance(&self) -> f64 {
        let compare = self.compare.iter().map(Comparison::disturbance);
        let figures = self.figures.iter().map(Figures::disturbance);
        let stress = self.stress.iter().map(Stress::disturbance);
        let growth = self.growth.iter().map(Growth::disturbance);
        let moving = self.moving.iter().map(Moving::disturbance);
        compare.chain(figures).chain(stress).chain(growth).chain(moving).fold(0.0, f64::max)
    }

    pub(crate) fn is_disturbed(&self) -> bool {
        self.disturbance() > DISTURBANCE_MAX
    }

    /// Figures that something else has disturbed are no figures.
    pub(crate) fn check_undisturbed(&self) -> Result<()> {
        let worst = self.disturbance();
        ensure!(
            worst <= DISTURBANCE_MAX,
            "these figures do not count: others used {worst:.2} of a core at times, and {DISTURBANCE_MAX} is the most"
        );
        Ok(())
    }

    /// An error that names the targets that were missed.
    pub(crate) fn check_targets(&self) -> Result<()> {
        let budgets = self.compare.iter().flat_map(Comparison::contract);
        let stress = self.stress.iter().flat_map(|stress| stress.verdicts.iter().cloned());
        let growth = self.growth.iter().flat_map(Growth::verdicts);
        let moving = self.moving.iter().flat_map(Moving::verdicts);
        let verdicts = budgets.chain(stress).chain(growth).chain(moving);
        let missed: Vec<_> = verdicts.filter(|verdict| !verdict.is_met).map(|verdict| verdict.what).collect();
        ensure!(missed.is_empty(), "{} targets were missed: {}", missed.len(), missed.join("; "));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fill::Filled;
    use crate::verdict::{Bound, Verdict};

    fn machine(kernel: &str) -> Machine {
        Machine {
            cores: 2,
            cpu: "some".to_owned(),
            memory_bytes: 1,
            kernel: kernel.to_owned(),
            file_system: "ext4".to_owned(),
            node: "keystore-node 1".to_owned(),
        }
    }

    fn growth(engine: &str, few: u32, start_disturbance: f64) -> Growth {
        let filled = Filled { records: 1, value_bytes: 100, seconds: 1.0, repeated: 0 };
        Growth {
            engine: engine.to_owned().into(),
            few,
            cache_mib: 64,
            clients: 1,
            filled,
            costs: Vec::new(),
            resident_few: 0.0,
            resident_many: 0.0,
            disk_few: 0.0,
            disk_many: 0.0,
            stop_seconds: 0.0,
            start_after_stop_seconds: 0.0,
            start_after_kill_seconds: 0.0,
            start_disturbance,
        }
    }

    fn stress(measured: f64) -> Stress {
        let (goodput, crowd, replica) = (Vec::new(), Vec::new(), Vec::new());
        let verdicts = vec![Verdict::new("it", Some(measured), Bound::AtMost(1.0))];
        Stress { engine: "sled".to_owned().into(), goodput, crowd, replica, sizes: None, verdicts }
    }

    #[test]
    fn what_was_measured_later_takes_the_place_of_its_part_alone() {
        let first = Results {
            stress: Some(stress(1.0)),
            growth: vec![growth("sled", 1, 0.0), growth("memory", 2, 0.0)],
            ..Results::on(machine("6"))
        };
        let second = Results { growth: vec![growth("sled", 3, 0.0)], ..Results::on(machine("6")) };
        let both = first.with(second).unwrap();
        assert!(both.stress.is_some());
        let mut few: Vec<_> =
            both.growth.iter().map(|growth| (growth.engine.name().to_owned(), growth.few)).collect();
        few.sort_unstable();
        assert_eq!(few, [("memory".to_owned(), 2), ("sled".to_owned(), 3)]);
    }

    #[test]
    fn figures_of_two_machines_are_no_report() {
        assert!(Results::on(machine("6")).with(Results::on(machine("5"))).is_err());
    }

    #[test]
    fn disturbed_figures_and_missed_targets_are_refused() {
        let of = |disturbance, measured| Results {
            stress: Some(stress(measured)),
            growth: vec![growth("sled", 1, disturbance)],
            ..Results::on(machine("6"))
        };
        let good = of(DISTURBANCE_MAX, 1.0);
        assert!(good.check_undisturbed().is_ok() && good.check_targets().is_ok());
        assert!(of(DISTURBANCE_MAX + 0.01, 1.0).check_undisturbed().is_err());
        assert!(of(0.0, 1.1).check_targets().unwrap_err().to_string().contains("it"));
    }

    #[test]
    fn results_are_the_same_after_they_were_written_and_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.json");
        let results = Results {
            stress: Some(stress(1.5)),
            growth: vec![growth("memory", 7, 0.1)],
            ..Results::on(machine("6"))
        };
        results.write(&path).unwrap();
        let read = Results::read(&path).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&results).unwrap());
    }
}
