//! What nodes say of layouts: who holds what, what the moves between two layouts came to, and who may go.
//!
//! The store plans moves by a flow; here they are judged by counting alone.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use keystore_client::{AdminClient, Difference, Epoch, Layout, NodeId, Partition};
use kube::ResourceExt;

use super::ksc::{StoreIdentity, pod_names, pod_names_of};
use super::sandbox::Sandbox;
use super::wait::{Look, WATCH_PAUSE, until};

/// Within which every node has taken up a layout that is in force.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(30);

/// The partitions of each node.
pub type Holdings = BTreeMap<NodeId, BTreeSet<Partition>>;

/// Who holds what under the ring that is to stay.
pub fn holdings(layout: &Layout) -> Holdings {
    let mut holdings = Holdings::new();
    for (partition, replicas) in layout.ring().iter() {
        for replica in replicas {
            holdings.entry(replica.node).or_default().insert(partition);
        }
    }
    holdings
}

/// How many copies of partitions are on nodes that did not hold them before.
pub fn moved(before: &Holdings, after: &Holdings) -> usize {
    let none = BTreeSet::new();
    after.iter().map(|(node, now)| now.difference(before.get(node).unwrap_or(&none)).count()).sum()
}

/// The least that can be moved for nodes to hold as many as they do: none both gains and loses any.
pub fn moved_min(before: &Holdings, after: &Holdings) -> usize {
    let had = |node| before.get(node).map_or(0, BTreeSet::len);
    after.iter().map(|(node, now)| now.len().saturating_sub(had(node))).sum()
}

/// What a node has seen become of moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    pub begun: usize,
    pub finished: usize,
    pub aborted: usize,
    /// How many nodes have joined.
    pub admitted: u32,
}

impl Moves {
    /// One that went to its end, for which so many nodes have joined.
    pub const fn one(admitted: u32) -> Self {
        Self { begun: 1, finished: 1, aborted: 0, admitted }
    }

    fn of<'a>(differences: impl IntoIterator<Item = &'a Difference>) -> Self {
        let mut moves = Self::default();
        for difference in differences {
            match *difference {
                Difference::Begun => moves.begun += 1,
                Difference::Finished => moves.finished += 1,
                Difference::Aborted => moves.aborted += 1,
                Difference::Admitted(count) => moves.admitted += count,
                Difference::First
                | Difference::Recovered { .. }
                | Difference::Altered(_)
                | Difference::Lost(_)
                | Difference::Dismissed(_)
                | Difference::Voters
                | Difference::Keyspaces(_) => {}
            }
        }
        moves
    }
}

impl Sandbox {
    /// The layout in force when the store was looked at, or a later one.
    pub async fn layout(&self, seen: &StoreIdentity) -> Result<Layout> {
        let epoch = epoch(seen)?;
        let pods = pod_names();
        let pod = pods.first().context("a store without pods")?;
        until("a node has taken up the layout", TAKEN_UP_WITHIN, || async {
            let (admin, _forward) = self.connect_admin(pod).await?;
            Ok(match admin.get_layout().await? {
                Some((layout, true)) if layout.epoch >= epoch => Look::Done(layout),
                other => Look::NotYet(format!("{pod} has {:?}", other.map(|(layout, _)| layout.epoch))),
            })
        })
        .await
    }

    /// What has become of moves between two looks at the store, by each node that every store has.
    pub async fn moves_between(
        &self,
        before: &StoreIdentity,
        after: &StoreIdentity,
    ) -> Result<BTreeMap<String, Moves>> {
        let (before, after) = (epoch(before)?, epoch(after)?);
        until("every node has taken up the layout", TAKEN_UP_WITHIN, || async {
            let mut moves = BTreeMap::new();
            for pod in pod_names() {
                let (admin, _forward) = self.connect_admin(&pod).await?;
                let history = admin.get_layout_history().await?;
                let last = history.entries().last().map(|entry| entry.epoch);
                if last < Some(after) {
                    return Ok(Look::NotYet(format!("{pod} has {last:?} of {after:?}")));
                }
                let since = history.entries().filter(|entry| entry.epoch > before);
                let changes = since.filter_map(|entry| entry.changes.as_ref());
                moves.insert(pod, Moves::of(changes.flat_map(|changes| &changes.differences)));
            }
            Ok(Look::Done(moves))
        })
        .await
    }

    /// Complains unless every node has seen one move from its begin to its end, for which so many nodes have joined.
    pub async fn expect_one_move(
        &self,
        before: &StoreIdentity,
        after: &StoreIdentity,
        admitted: u32,
    ) -> Result<()> {
        let moves = self.moves_between(before, after).await?;
        ensure!(moves.values().all(|of_node| *of_node == Moves::one(admitted)), "the moves were {moves:?}");
        Ok(())
    }

    /// How many records have come to each of these nodes from others, since their processes started.
    pub async fn records_transferred(&self, pods: &[String]) -> Result<u64> {
        let mut records = 0;
        for pod in pods {
            let (admin, _forward) = self.connect_admin(pod).await?;
            records += admin.get_status().await?.transfer.records;
        }
        Ok(records)
    }

    /// Looks all along whether a pod from `staying` on goes while those that stay know its node to hold data. Ends only
    /// with such a find, or where a look fails.
    pub async fn watch_pods_that_go(&self, staying: i32, of: i32) -> Result<Infallible> {
        let mut admins = Vec::new();
        for pod in pod_names_of(staying) {
            admins.push(self.connect_admin(&pod).await?);
        }
        let leavers = pod_names_of(of).split_off(admins.len());
        loop {
            // The pods first: whoever goes by now may hold nothing in what is in force from now on.
            let living = self.living_pods().await?;
            let going: Vec<_> = leavers.iter().filter(|pod| !living.contains(*pod)).collect();
            for (admin, _) in &admins {
                expect_empty(admin, &going).await?;
            }
            tokio::time::sleep(WATCH_PAUSE).await;
        }
    }

    /// Those that are not about to go.
    async fn living_pods(&self) -> Result<BTreeSet<String>> {
        let lives = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
        Ok(self.store_pods().await?.iter().filter(|pod| lives(pod)).map(ResourceExt::name_any).collect())
    }
}

/// Complains if one of these pods' nodes holds data, by the layout that a node has.
async fn expect_empty(admin: &AdminClient, pods: &[&String]) -> Result<()> {
    if pods.is_empty() {
        return Ok(());
    }
    let (layout, _) = admin.get_layout().await?.context("a node of no cluster")?;
    for member in layout.members.iter().filter(|member| pods.contains(&&member.name)) {
        let held: usize = layout.rings().map(|ring| ring.owned(member.node)).sum();
        ensure!(held == 0, "{} goes and holds {held} partitions in epoch {:?}", member.name, layout.epoch);
    }
    Ok(())
}

fn epoch(seen: &StoreIdentity) -> Result<Epoch> {
    Ok(Epoch(seen.epoch.try_into().context("a negative epoch")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held<const N: usize>(nodes: [&[u16]; N]) -> Holdings {
        let partitions = |numbers: &[u16]| numbers.iter().copied().map(Partition).collect();
        (1..).zip(nodes).map(|(node, numbers)| (NodeId([node; 16]), partitions(numbers))).collect()
    }

    #[test]
    fn what_moves_beyond_the_least_is_counted() {
        let before = held([&[0, 1, 2], &[3, 4, 5]]);
        let least = held([&[0, 1], &[3, 4], &[2, 5]]);
        assert_eq!((moved(&before, &least), moved_min(&before, &least)), (2, 2));
        let swapped = held([&[0, 3], &[1, 4], &[2, 5]]);
        assert_eq!((moved(&before, &swapped), moved_min(&before, &swapped)), (4, 2));
        assert_eq!((moved(&least, &before), moved_min(&least, &before)), (2, 2), "the other way");
        assert_eq!(moved(&before, &before), 0);
    }

    #[test]
    fn moves_are_counted_by_how_they_ended() {
        use Difference::{Aborted, Admitted, Begun, Finished, Voters};
        assert_eq!(Moves::of(&[Admitted(2), Begun, Voters, Finished]), Moves::one(2));
        let turned_back = Moves { begun: 2, aborted: 2, ..Moves::default() };
        assert_eq!(Moves::of(&[Begun, Aborted, Begun, Aborted]), turned_back);
    }
}
