//! The page of the report. Pure.

use super::Results;
use super::plots::Plot;
use crate::figures::Figures;
use crate::growth::Growth;
use crate::machine::Machine;
use crate::meter::DISTURBANCE_MAX;
use crate::moving::Moving;
use crate::stress::Stress;
use crate::table::{Table, number};

pub(super) struct Page<'a> {
    pub(super) results: &'a Results,
    pub(super) plots: &'a [Plot],
    /// What was written by hand, if it is there.
    pub(super) profile: Option<&'a str>,
}

const HOW: &str = "\
Three nodes of the store, or three members of an etcd, are processes on one machine, over loopback, each with a
directory of its own on one disk; every node holds every record. Clients are in one process beside them, on one thread,
over the same gRPC library for both systems. Server CPU is the CPU time of the three server processes together, for one
operation: it says more than throughput, since servers and clients share the cores. `calls` sends each operation as a
call of its own, `stream` all operations of a node's clients over one session.

- **Compared**: rounds in turn (etcd, calls, stream), each beginning with another system; ratios are made within a round,
  and the median of the rounds counts. A durable put is synced on a majority on both sides; `put` is periodic sync
  against etcd without fsync; a quorum get is against a linearizable one, a get of one replica against a serializable.
- **The store alone**: what a put writes is `write_bytes` of the node's `/proc/PID/io` until it is quiet again, for each
  byte of key and value. A start is timed until `/readyz` says so, of one node while the other two serve.
- **Stress**: what saturates the store is found with more and more clients that wait for each answer. Then come three
  times as many of these, and then requests that arrive at three times the peak's rate, whatever becomes of those before
  them, of which clients hold back what their streams do not take; servers and clients have cores of their own. A slow replica is halted for 40 of every 100 ms, a stopped one all the time.
- **Growth**: the same operations over random keys of all records, and of a nearly empty store. To puts is counted what the
  nodes do afterwards until they are quiet; gets are measured of what the caches hold after as many gets before.
- **While data moves**: the clients of three nodes go on while a fourth one joins and takes its share, and while it gives it
  back; against the same load before and after.
";

impl Page<'_> {
    pub(super) fn markdown(&self) -> String {
        let Results { machine, compare, figures, stress, growth, moving } = self.results;
        let mut out = String::from("# Performance\n\n");
        out += "Generated from measurements: edit nothing here, measure again.";
        if let Some(profile) = self.profile {
            out += &format!(" [Where the time goes]({profile}) is written by hand.");
        }
        out += "\n\n";
        if self.results.is_disturbed() {
            out += &format!(
                "**Disturbed: others used more than {DISTURBANCE_MAX} of a core while some of this was measured. What \
                 is marked so does not count.**\n\n"
            );
        }
        out += &format!("## How\n\n{HOW}\n{}", repeat(self.results));
        out += &of_machine(machine, compare.as_ref().map(|compare| compare.etcd.as_str()));
        if let Some(compare) = compare {
            out += "## Compared with etcd\n\n";
            out += &compare.budget_table().markdown();
            for Plot { file, title, .. } in self.plots {
                out += &format!("{title}:\n\n![{title}]({file})\n\n");
            }
            out += &compare.table().markdown();
        }
        out += &section("The store alone", figures.iter().flat_map(Figures::tables));
        if figures.as_ref().is_some_and(|figures| figures.operator.is_none()) {
            out += "The operator was not measured: it needs a Kubernetes (see above).\n\n";
        }
        out += &section("Stress", stress.iter().flat_map(Stress::tables));
        out += &section("Growth", growth.iter().flat_map(Growth::tables));
        out += &section("While data moves", moving.iter().flat_map(Moving::tables));
        out.trim_end().to_owned() + "\n"
    }
}

fn section(title: &str, tables: impl Iterator<Item = Table>) -> String {
    let tables: String = tables.map(|table| table.markdown()).collect();
    if tables.is_empty() { tables } else { format!("## {title}\n\n{tables}") }
}

fn repeat(results: &Results) -> String {
    let mut commands = Vec::new();
    let mut add = |part: &str, name: &str| commands.push(format!("./dev.sh bench {part} --json {name}.json"));
    let parts = [
        ("compare", results.compare.is_some()),
        ("figures", results.figures.is_some()),
        ("stress", results.stress.is_some()),
    ];
    parts.iter().filter(|(_, is_there)| *is_there).for_each(|(part, _)| add(part, part));
    for growth in &results.growth {
        let (engine, cache) = (growth.engine.name(), growth.cache_mib);
        add(&format!("growth --engine {engine} --cache-mib {cache}"), &format!("growth-{engine}"));
    }
    for moving in &results.moving {
        let engine = moving.engine.name();
        commands.push(format!("./dev.sh bench moving --engine {engine} --json moving-{engine}.json"));
    }
    let commands = commands.join("\n");
    format!(
        "To repeat it, on a machine that does nothing else (figures that others have disturbed are refused):\n\n\
         ```\n{commands}\n./dev.sh bench report --from *.json --to docs/performance\n```\n\n\
         An operator that runs on this machine (`./dev.sh up` starts one) is watched too by\n\
         `./dev.sh bench figures --operator-pid $(pgrep keystore-opera)`.\n\n"
    )
}

fn of_machine(machine: &Machine, etcd: Option<&str>) -> String {
    let Machine { cores, cpu, memory_bytes, kernel, file_system, node } = machine;
    let mut table = Table::new("Machine", &["what", "is"]);
    let memory = number(*memory_bytes as f64 / f64::from(1 << 30), 1);
    let mut row = |what: &str, is: &str| table.row([what.to_owned(), is.to_owned()]);
    row("processor", &format!("{cpu}, {cores} cores"));
    row("memory", &format!("{memory} GiB"));
    row("kernel", kernel);
    row("file system of the data", file_system);
    row("store", node);
    if let Some(etcd) = etcd {
        row("etcd", etcd);
    }
    table.markdown()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::Comparison;

    fn results() -> Results {
        Results::on(Machine {
            cores: 2,
            cpu: "Some CPU".to_owned(),
            memory_bytes: 3 << 29,
            kernel: "Linux 6".to_owned(),
            file_system: "ext4".to_owned(),
            node: "keystore-node 1".to_owned(),
        })
    }

    #[test]
    fn a_page_has_only_what_was_measured() {
        let page = |results: &Results| Page { results, plots: &[], profile: None }.markdown();
        let bare = page(&results());
        assert!(bare.contains("| processor | Some CPU, 2 cores |") && bare.contains("| memory | 1.5 GiB |"));
        assert!(!bare.contains("## Compared") && !bare.contains("## Growth") && !bare.contains("isturbed:"));
        let compare = Comparison { etcd: "etcd Version: 3".to_owned(), rows: Vec::new() };
        let compared = page(&Results { compare: Some(compare), ..results() });
        assert!(
            compared.contains("## Compared with etcd") && compared.contains("| etcd | etcd Version: 3 |")
        );
        assert!(compared.contains("./dev.sh bench compare --json compare.json\n"));
    }

    #[test]
    fn the_page_leads_to_plots_and_to_what_was_written_by_hand() {
        let plot = Plot { file: "a.svg", title: "A".to_owned(), svg: String::new() };
        let compare = Comparison { etcd: String::new(), rows: Vec::new() };
        let results = Results { compare: Some(compare), ..results() };
        let page = Page { results: &results, plots: &[plot], profile: Some("profile.md") }.markdown();
        assert!(page.contains("![A](a.svg)") && page.contains("(profile.md)"));
    }
}
