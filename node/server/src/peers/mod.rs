//! Streams to the other members: one for each pair, dialled by the node with the lower UUID, or by each to whom the
//! other shows another epoch.
//!
//! The core judges each hello before anything else of a link is read. What cannot be sent closes the link, so a
//! message is delivered in order or its link is gone. The layout says whom to dial and gossip only where: a member of
//! which gossip says nothing any more is still where it was last.

mod accept;
mod dial;
mod link;
mod links;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use keystore_core::id::NodeId;
use keystore_core::layout::Layout;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use accept::PeerService;
pub use links::Links;

use crate::about::{About, Gossiped};
use crate::handle::CoreHandle;
use accept::Accepted;
use dial::{Dialler, Target};

/// How many connections from peers may wait for their task.
const ACCEPTED_MAX: usize = 64;

/// Why the streams to other members have ended.
#[derive(Debug, Error)]
pub enum PeersError {
    #[error("a task of a link to another member ended in a panic: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Keeps a link to every other member.
pub struct Peers {
    core: CoreHandle,
    links: Arc<Links>,
    me: NodeId,
    gossiped: watch::Receiver<Arc<Gossiped>>,
    accepted: mpsc::Receiver<Accepted>,
    /// Of each member with a higher UUID, where it is to be dialled.
    targets: BTreeMap<NodeId, (watch::Sender<Target>, CancellationToken)>,
    tasks: JoinSet<()>,
}

impl Peers {
    /// The other half answers when a peer dials.
    pub fn new(about: &About, links: Arc<Links>) -> (Self, PeerService) {
        let (accepting, accepted) = mpsc::channel(ACCEPTED_MAX);
        let peers = Self {
            core: about.core.clone(),
            links,
            me: about.node,
            gossiped: about.gossiped.clone(),
            accepted,
            targets: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        (peers, PeerService::new(accepting))
    }

    pub async fn run(mut self, cancelled: CancellationToken) -> Result<(), PeersError> {
        let mut view = self.core.watch_view();
        loop {
            self.aim(&cancelled);
            tokio::select! {
                () = cancelled.cancelled() => break,
                Some(accepted) = self.accepted.recv() => {
                    let (core, links) = (self.core.clone(), Arc::clone(&self.links));
                    self.tasks.spawn(accepted.run(core, links, cancelled.child_token()));
                }
                Ok(()) = view.changed() => { view.mark_unchanged(); }
                Ok(()) = self.gossiped.changed() => {}
                Some(ended) = self.tasks.join_next() => ended?,
            }
        }
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        Ok(())
    }

    /// Dials the members that are ours to dial, each where gossip has last said that it is.
    fn aim(&mut self, cancelled: &CancellationToken) {
        let gossiped = Arc::clone(&self.gossiped.borrow_and_update());
        let Some(layout) = self.core.view().layout.clone() else { return };
        self.targets.retain(|peer, (_, cancelled)| {
            let keep = layout.member(*peer).is_some();
            if !keep {
                cancelled.cancel();
            }
            keep
        });
        for (peer, target) in self.found(&layout, &gossiped) {
            if let Some((current, _)) = self.targets.get(&peer) {
                current.send_if_modified(|current| std::mem::replace(current, target) != target);
                continue;
            }
            let (sender, receiver) = watch::channel(target);
            let token = cancelled.child_token();
            self.targets.insert(peer, (sender, token.clone()));
            let dialler = Dialler {
                core: self.core.clone(),
                links: Arc::clone(&self.links),
                me: self.me,
                peer,
                target: receiver,
            };
            self.tasks.spawn(dialler.run(token));
        }
    }

    fn found(&self, layout: &Layout, gossiped: &Gossiped) -> BTreeMap<NodeId, Target> {
        let others = layout.members.iter().filter(|member| member.node != self.me);
        others
            .filter_map(|member| {
                let known = gossiped.get(&member.node)?;
                let address: SocketAddr = known.peer_address?;
                // One that is behind may not know that we are a member, and one that is ahead that we are none any more.
                let is_ours = member.node > self.me || known.epoch != Some(layout.epoch);
                is_ours.then_some((member.node, Target { address, generation: known.generation }))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use keystore_core::id::{Epoch, Generation};

    use super::*;
    use crate::about::Known;
    use crate::clock::Clock;
    use crate::inbox::Inbox;
    use crate::view::{View, layout_of};

    const ME: NodeId = NodeId([1; 16]);
    const PEER: NodeId = NodeId([2; 16]);

    fn view_of(members: &[NodeId]) -> Arc<View> {
        Arc::new(View { layout: Some(Arc::new(layout_of(members))), ..View::starting() })
    }

    fn at(port: u16) -> Arc<Gossiped> {
        let known = Known {
            generation: Generation(1),
            peer_address: Some(SocketAddr::from(([127, 0, 0, 1], port))),
            client_address: String::new(),
            alive: true,
            epoch: Some(Epoch(1)),
        };
        Arc::new(Gossiped::from([(PEER, known)]))
    }

    #[tokio::test]
    async fn a_member_is_dialled_until_the_layout_names_it_no_more_whatever_gossip_says() {
        let (gossip, gossiped) = watch::channel(at(1));
        let (shown, view) = watch::channel(view_of(&[ME, PEER]));
        let stopping = watch::channel(false).1;
        let mut peers = Peers {
            core: CoreHandle::new(Arc::new(Inbox::new(1)), view, stopping, Clock::new(0)),
            links: Arc::new(Links::new(1)),
            me: ME,
            gossiped,
            accepted: mpsc::channel(1).1,
            targets: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        let cancelled = CancellationToken::new();
        let port = |peers: &Peers| peers.targets.get(&PEER).map(|(target, _)| target.borrow().address.port());

        peers.aim(&cancelled);
        assert_eq!(port(&peers), Some(1));
        let dialling = peers.targets[&PEER].1.clone();
        gossip.send_replace(Arc::default());
        peers.aim(&cancelled);
        assert_eq!(port(&peers), Some(1), "it is still where it was last");
        gossip.send_replace(at(2));
        peers.aim(&cancelled);
        assert_eq!(port(&peers), Some(2));
        assert_eq!(peers.tasks.len(), 1, "one dialler has followed");
        assert!(!dialling.is_cancelled());
        shown.send_replace(view_of(&[ME]));
        peers.aim(&cancelled);
        assert_eq!(port(&peers), None);
        assert!(dialling.is_cancelled());
    }
}
