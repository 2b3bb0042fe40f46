//! Streams to the other members: one for each pair, dialled by the node with the lower UUID, unless it may not
//! know that it should.
//!
//! The core judges each hello before anything else of a link is read. What cannot be sent closes the link, so a
//! message is delivered in order or its link is gone. The layout says whom to dial and gossip only where: a member of
//! which gossip says nothing any more is still where it was last.

mod accept;
mod dial;
mod link;
mod links;
mod packing;

use std::collections::BTreeMap;
use std::sync::Arc;

use keystore_core::id::{Epoch, NodeId};
use keystore_core::layout::Layout;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

pub use accept::PeerService;
pub use links::Links;
pub use packing::unpack;

use crate::about::{About, Gossiped, Known};
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
    /// Of each member with a lower UUID that has been dialled all the same, the task that does.
    helping: BTreeMap<NodeId, AbortHandle>,
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
            helping: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        (peers, PeerService::new(accepting))
    }

    pub async fn run(mut self, cancelled: CancellationToken) -> Result<(), PeersError> {
        let mut view = self.core.watch_view();
        loop {
            self.aim(&cancelled);
            self.help(&cancelled);
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
            self.tasks.spawn(self.dialler(peer, receiver).run(token));
        }
    }

    fn found(&self, layout: &Layout, gossiped: &Gossiped) -> BTreeMap<NodeId, Target> {
        let ours = layout.members.iter().filter(|member| member.node > self.me);
        ours.filter_map(|member| Some((member.node, target(gossiped.get(&member.node)?)?))).collect()
    }

    /// Dials the members that should dial us, and may not know that: one that is behind may not have heard of us, and to
    /// one that is ahead we may be a member no more. Once a time, lest both sides replace each other's links. And those that
    /// have departed without hearing of it, or before they heard that they were members: they wait for somebody to take them,
    /// and nobody will.
    fn help(&mut self, cancelled: &CancellationToken) {
        let gossiped = Arc::clone(&self.gossiped.borrow());
        let view = self.core.view();
        let Some(layout) = view.layout.as_ref() else { return };
        // The first layout is given to all members alike.
        let is_elsewhere = |known: &&Known| match layout.epoch {
            Epoch(1) => known.epoch.is_some_and(|epoch| epoch > Epoch(1)),
            epoch => known.epoch != Some(epoch),
        };
        self.helping.retain(|_, helping| !helping.is_finished());
        let is_connected = |node: NodeId| view.connected.iter().any(|(connected, _)| *connected == node);
        let members = layout.members.iter().map(|member| member.node).filter(|member| *member < self.me);
        let lost = members.filter_map(|node| Some((node, gossiped.get(&node).filter(is_elsewhere)?)));
        let unaware = |known: &&Known| known.alive && known.epoch.is_none_or(|epoch| epoch < layout.epoch);
        let departed = layout.departed.iter();
        let departed = departed.filter_map(|node| Some((*node, gossiped.get(node).filter(unaware)?)));
        for (node, known) in lost.chain(departed) {
            let Some(target) = target(known) else { continue };
            if !is_connected(node) && !self.helping.contains_key(&node) {
                let (_, target) = watch::channel(target);
                let dialler = self.dialler(node, target);
                let helping = self.tasks.spawn(dialler.run_once(cancelled.child_token()));
                self.helping.insert(node, helping);
            }
        }
    }

    fn dialler(&self, peer: NodeId, target: watch::Receiver<Target>) -> Dialler {
        let (core, links) = (self.core.clone(), Arc::clone(&self.links));
        Dialler { core, links, me: self.me, peer, target }
    }
}

fn target(known: &Known) -> Option<Target> {
    Some(Target { address: known.peer_address?, generation: known.generation })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use keystore_core::id::Generation;

    use super::*;
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
            helping: BTreeMap::new(),
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
