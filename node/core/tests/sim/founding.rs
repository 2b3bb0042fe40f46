//! How the cluster of a run begins: its first layout, and how each member comes to it, and some to a rival's first.

use keystore_core::effect::Event;
use keystore_core::id::{Actor, ClusterId, Incarnation};
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::partition::PartitionCount;

use crate::faults::Fault;
use crate::machine::Machine;
use crate::plan::Plan;
use crate::workload;
use crate::world::{Pending, World};

impl World {
    /// Gives all members the first layout, and some of them another one afterwards; waits until all serve.
    pub(crate) fn init(&mut self) {
        for machine in 0..self.plan.nodes {
            let wait = self.rng.between(0, 300);
            self.after(wait, Pending::Init { machine, is_rival: false });
            let wait = self.rng.between(0, 1_000);
            self.after(wait, Pending::Init { machine, is_rival: true });
        }
        if self.plan.faults.contains(&Fault::Crash) {
            let n = self.rng.index(self.plan.nodes);
            self.strike_with(Fault::Crash, n);
        }
        let deadline = self.now_ms + 60_000;
        while !self.all_serve() && self.violation.is_none() {
            assert!(self.now_ms < deadline, "not all nodes serve after init");
            self.run_for(10);
            self.check_serving();
        }
    }

    pub(crate) fn give_layout(&mut self, n: usize, is_rival: bool) {
        if !self.is_running(n) {
            return self.after(100, Pending::Init { machine: n, is_rival });
        }
        let has_accepted = self.machines[n].disk.state.membership.is_some();
        let mut layout = self.layout.clone();
        if is_rival {
            layout.cluster = ClusterId([8; 16]);
        }
        // Whoever has accepted nothing takes what comes first; and it is asked until it has.
        if has_accepted == is_rival {
            let request = self.next_request();
            self.step(n, Event::Init { request, layout });
        }
        if !has_accepted {
            self.after(100, Pending::Init { machine: n, is_rival });
        }
    }
}

pub(crate) fn first_layout(machines: &[Machine], plan: &Plan) -> Layout {
    let member = |(n, machine): (usize, &Machine)| Member {
        node: machine.id,
        actor: Actor(n as u64 + 1),
        name: format!("node-{n}"),
        zone: plan.zone(n),
        weight: plan.weight(n),
        is_lost: false,
    };
    let first = FirstLayout {
        cluster: ClusterId([7; 16]),
        incarnation: Incarnation { number: 1, id: 7 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor: plan.replication_factor,
        members: machines.iter().enumerate().map(member).collect(),
        keyspaces: workload::modes(),
    };
    Layout::first(first).unwrap()
}
