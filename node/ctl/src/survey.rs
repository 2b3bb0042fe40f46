//! What the nodes of a cluster say of it: each is asked for itself, those that were not named too if the others
//! announce where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use keystore_client::{AdminClient, Error, Layout, NodeId, NodeState, NodeStatus};

use crate::args::Globals;
use crate::failure::{Exit, Failure};
use crate::reach::{self, Addresses};

/// Nodes that nobody named are not waited for longer than this.
const DISCOVERED_TIMEOUT: Duration = Duration::from_secs(2);

/// One node's answer.
pub(crate) struct Answer {
    pub admin: AdminClient,
    pub status: NodeStatus,
}

pub(crate) struct Survey {
    pub answers: Vec<Answer>,
    /// Addresses that gave none.
    pub unanswered: Vec<(String, Error)>,
    _addresses: Addresses,
}

/// Asks the given addresses. Fails only if none answers.
pub(crate) async fn ask(globals: &Globals) -> Result<Survey, Failure> {
    let addresses = reach::admin_addresses(globals).await?;
    let mut survey = Survey { answers: Vec::new(), unanswered: Vec::new(), _addresses: addresses };
    let named = survey._addresses.addresses.clone();
    survey.ask(named, globals.timeout()).await;
    match (survey.answers.first(), survey.unanswered.first()) {
        (None, Some((_, error))) => Err(Failure::from(error.clone())),
        _ => Ok(survey),
    }
}

/// Asks the given addresses, and then the members that they name.
pub(crate) async fn ask_all(globals: &Globals) -> Result<Survey, Failure> {
    let mut survey = ask(globals).await?;
    if survey._addresses.announced_are_reachable {
        let others = survey.members_not_asked();
        survey.ask(others, globals.timeout().min(DISCOVERED_TIMEOUT)).await;
    }
    Ok(survey)
}

/// Asks one node.
pub(crate) async fn ask_one(address: String, timeout: Duration) -> Result<Answer, (String, Error)> {
    let asking = async {
        let admin = AdminClient::connect_within(address.clone(), timeout).await?;
        let status = admin.get_status().await?;
        Ok(Answer { admin, status })
    };
    asking.await.map_err(|error| (address, error))
}

impl Survey {
    async fn ask(&mut self, addresses: Vec<String>, timeout: Duration) {
        let results = join_all(addresses.into_iter().map(|address| ask_one(address, timeout))).await;
        self.take(results);
    }

    fn take(&mut self, results: impl IntoIterator<Item = Result<Answer, (String, Error)>>) {
        for result in results {
            match result {
                // Two addresses may lead to one node.
                Ok(answer) if self.node(answer.status.node).is_some() => {}
                Ok(answer) => self.answers.push(answer),
                Err(unanswered) => self.unanswered.push(unanswered),
            }
        }
    }

    /// Asks everybody again, also those who gave no answer, and members that are new.
    pub(crate) async fn ask_again(&mut self, timeout: Duration) {
        let mut addresses: Vec<_> =
            std::mem::take(&mut self.unanswered).into_iter().map(|(address, _)| address).collect();
        if self._addresses.announced_are_reachable {
            addresses.extend(self.members_not_asked());
        }
        let answers = std::mem::take(&mut self.answers);
        let again = answers.into_iter().map(async |Answer { admin, .. }| {
            let admin = admin.with_timeout(timeout);
            match admin.get_status().await {
                Ok(status) => Ok(Answer { admin, status }),
                Err(error) => Err((admin.address().to_owned(), error)),
            }
        });
        let results = join_all(again).await;
        self.take(results);
        self.ask(addresses, timeout).await;
    }

    /// Adds the answer of a node that was asked otherwise.
    pub(crate) fn add(&mut self, answer: Answer) {
        self.take([Ok(answer)]);
    }

    fn members_not_asked(&self) -> Vec<String> {
        let peers = self.answers.iter().flat_map(|answer| &answer.status.peers);
        let known: BTreeMap<_, _> = peers
            .filter(|peer| !peer.peer_address.is_empty() && self.node(peer.node).is_none())
            .map(|peer| (peer.node, peer.peer_address.clone()))
            .collect();
        known.into_values().collect()
    }

    pub(crate) fn node(&self, node: NodeId) -> Option<&NodeStatus> {
        self.answers.iter().map(|answer| &answer.status).find(|status| status.node == node)
    }

    pub(crate) fn serving(&self) -> impl Iterator<Item = &NodeStatus> {
        let statuses = self.answers.iter().map(|answer| &answer.status);
        statuses.filter(|status| status.state == NodeState::Serving)
    }

    /// A node that has the newest layout, one that serves if there is any.
    pub(crate) fn newest(&self) -> Option<&Answer> {
        self.answers.iter().max_by_key(|Answer { status, .. }| {
            (status.incarnation, status.epoch, status.state == NodeState::Serving)
        })
    }

    /// Every node that has the newest layout.
    pub(crate) fn up_to_date(&self) -> impl Iterator<Item = &Answer> {
        let of = |answer: &Answer| (answer.status.incarnation, answer.status.epoch);
        let newest = self.newest().map(of);
        self.answers.iter().filter(move |answer| Some(of(answer)) == newest)
    }

    /// Members that the node with the newest layout does not reach, and that have given no answer.
    pub(crate) fn away(&self) -> BTreeSet<NodeId> {
        let peers = self.newest().map(|answer| &answer.status.peers);
        let silent = peers.into_iter().flatten().filter(|peer| !peer.connected);
        silent.map(|peer| peer.node).filter(|node| self.node(*node).is_none()).collect()
    }

    /// The newest layout that a node has accepted; `None` if no node has any.
    pub(crate) async fn layout(&self) -> Result<Option<Layout>, Failure> {
        match self.newest() {
            Some(answer) => Ok(answer.admin.get_layout().await?.map(|(layout, _)| layout)),
            None => Ok(None),
        }
    }

    /// As [`Survey::layout`], where there has to be one.
    pub(crate) async fn layout_of_cluster(&self) -> Result<Layout, Failure> {
        self.layout().await?.ok_or_else(|| {
            Failure::new(Exit::Refused, "NOT_INITIALIZED", "the cluster has not been initialised")
        })
    }
}
