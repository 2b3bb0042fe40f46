//! Which layouts lead from the one in force to what is wanted. A pure function of what was seen.

use std::collections::{BTreeMap, BTreeSet};

use keystore_client::{
    Change, KeyspaceMode, Layout, LayoutError, Member, NodeId, SuccessionError, is_keyspace_name,
};

use crate::args::{Joining, Wanted};
use crate::failure::{Exit, Failure};

/// Layouts that are to be decided, in this order; neither if nothing would change.
#[derive(Debug)]
pub(super) struct Steps {
    /// New nodes become members that hold nothing: they have to be reached before data moves to them.
    pub admission: Option<Layout>,
    pub change: Option<Layout>,
}

impl Steps {
    /// `away` are members that cannot be reached: others vote in their place, as far as there are any.
    pub(super) fn plan(
        now: &Layout,
        wanted: &Wanted,
        joining: &[Member],
        away: &BTreeSet<NodeId>,
    ) -> Result<Self, Failure> {
        let follow = |of: &Layout, change: &Change| match of.next_without(change, away) {
            Ok(next) => Ok(Some(next)),
            Err(SuccessionError::Nothing) => Ok(None),
            Err(error) => Err(refused(of, &error)),
        };
        let members = &now.members;
        let change = match wanted {
            Wanted::Nodes { names, joining: known } => {
                let named = name_members(members, (joining, known), names)?;
                let new: Vec<_> = named.iter().filter(|member| is_new(now, member)).cloned().collect();
                let admission = match new.is_empty() {
                    true => None,
                    // A move that cannot begin anyway admits nobody.
                    false if now.is_joint() => return Err(refused(now, &SuccessionError::IsMoving)),
                    false => follow(now, &Change::Admit(new))?,
                };
                let replication_factor = now.replication_factor;
                let moving = Change::Move { members: named, replication_factor };
                let change = follow(admission.as_ref().unwrap_or(now), &moving)?;
                return Ok(Self { admission, change });
            }
            Wanted::Finish => Change::Finish,
            Wanted::Abort => Change::Abort,
            Wanted::Lost(names) => Change::Lose(find_all(members, names)?),
            Wanted::Dismiss(names) => Change::Dismiss(name_idle(now, names)?),
            Wanted::Keyspaces(keyspaces) => Change::Keyspaces(name_keyspaces(keyspaces)?),
        };
        Ok(Self { admission: None, change: follow(now, &change)? })
    }

    /// The layout that is to be in force in the end, if any is to follow.
    pub(super) fn last(&self) -> Option<&Layout> {
        self.change.as_ref().or(self.admission.as_ref())
    }

    /// The names of the nodes that are admitted to a layout's members.
    pub(super) fn admitted(&self, now: &Layout) -> String {
        let members = self.admission.iter().flat_map(|admission| &admission.members);
        let new = members.filter(|member| member.weight > 0 && is_new(now, member));
        new.map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// True if it has to be admitted before data moves to it.
fn is_new(now: &Layout, member: &Member) -> bool {
    now.member(member.node).is_none_or(|known| known.weight == 0)
}

fn refused(layout: &Layout, error: &SuccessionError) -> Failure {
    let hint = match error {
        SuccessionError::IsMoving => " (propose --finish --wait, or abort)",
        _ => "",
    };
    let message = layout.with_names(&error.to_string());
    Failure::new(Exit::Refused, "LAYOUT_REFUSED", format!("{message}{hint}; nothing was done"))
}

/// Each keyspace once, by a name that it can have.
fn name_keyspaces(wanted: &[(String, KeyspaceMode)]) -> Result<BTreeMap<String, KeyspaceMode>, Failure> {
    let mut keyspaces = BTreeMap::new();
    for (name, mode) in wanted {
        if !is_keyspace_name(name) {
            let problem = LayoutError::KeyspaceName(name.clone());
            return Err(Failure::usage(format!("{problem}; nothing was done")));
        }
        if keyspaces.insert(name.clone(), *mode).is_some() {
            return Err(Failure::usage(format!("the keyspace {name} is named twice; nothing was done")));
        }
    }
    Ok(keyspaces)
}

/// Exactly the members that are to hold data.
fn name_members(
    members: &[Member],
    (joining, known): (&[Member], &Joining),
    names: &[String],
) -> Result<Vec<Member>, Failure> {
    let candidates: Vec<Member> = members.iter().chain(joining).cloned().collect();
    let mut named = BTreeMap::new();
    for name in names {
        let member = find(&candidates, name)?;
        if member.is_lost {
            let message = format!("{} is lost for good and can hold nothing; nothing was done", member.name);
            return Err(Failure::new(Exit::Refused, "NODE_LOST", message));
        }
        let member = Member { weight: member.weight.max(1), ..member.clone() };
        if named.insert(member.node, member).is_some() {
            return Err(Failure::usage(format!("the node {name} is named twice; nothing was done")));
        }
    }
    if let Some(other) = joining.iter().find(|member| !named.contains_key(&member.node)) {
        let problem = format!("{} ({}) is to join, and --nodes does not name it", other.name, other.node);
        return Err(Failure::usage(problem));
    }
    for (name, zone) in &known.zone {
        named_mut(&mut named, find(&candidates, name)?)?.zone.clone_from(zone);
    }
    for (name, weight) in &known.weight {
        named_mut(&mut named, find(&candidates, name)?)?.weight = *weight;
    }
    Ok(named.into_values().collect())
}

fn named_mut<'a>(named: &'a mut BTreeMap<NodeId, Member>, of: &Member) -> Result<&'a mut Member, Failure> {
    let problem =
        || Failure::usage(format!("{} has a zone or weight, and --nodes does not name it", of.name));
    named.get_mut(&of.node).ok_or_else(problem)
}

pub(crate) fn find_all(members: &[Member], names: &[String]) -> Result<BTreeSet<NodeId>, Failure> {
    names.iter().map(|name| find(members, name).map(|member| member.node)).collect()
}

/// Members that hold nothing.
fn name_idle(now: &Layout, names: &[String]) -> Result<BTreeSet<NodeId>, Failure> {
    let nodes = find_all(&now.members, names)?;
    match now.members.iter().find(|member| nodes.contains(&member.node) && now.owned(member.node) > 0) {
        Some(member) => {
            let name = &member.name;
            let message = format!("{name} holds data: move that to others first (--nodes); nothing was done");
            Err(Failure::new(Exit::Refused, "LAYOUT_REFUSED", message))
        }
        None => Ok(nodes),
    }
}

/// The node of this UUID, or else of this name if only one has it.
fn find<'a>(members: &'a [Member], name: &str) -> Result<&'a Member, Failure> {
    if let Ok(node) = name.parse::<NodeId>()
        && let Some(member) = members.iter().find(|member| member.node == node)
    {
        return Ok(member);
    }
    let refused = |reason, message: String| Failure::new(Exit::Refused, reason, message);
    match members.iter().filter(|member| member.name == name).collect::<Vec<_>>()[..] {
        [member] => Ok(member),
        [] => {
            let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
            let message =
                format!("no node is called {name}: there are {}; nothing was done", names.join(", "));
            Err(refused("NODE_UNKNOWN", message))
        }
        ref several => {
            let nodes: Vec<_> = several.iter().map(|member| member.node.to_string()).collect();
            let message =
                format!("several nodes are called {name}: say which by its UUID, {}", nodes.join(" or "));
            Err(refused("NODE_AMBIGUOUS", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use keystore_client::fake::{first_layout, member};
    use keystore_client::{Epoch, Step, check_step};

    use crate::args::{Arguments, Command, LayoutCommand};

    fn wanted(what: &str) -> Wanted {
        let command = format!("keystorectl layout plan {what}");
        match Arguments::try_parse_from(command.split_whitespace()).unwrap().command {
            Command::Layout(LayoutCommand::Plan(change)) => change.into(),
            other => panic!("{other:?}"),
        }
    }

    fn steps(now: &Layout, what: &str, joining: &[Member]) -> Result<Steps, Failure> {
        Steps::plan(now, &wanted(what), joining, &BTreeSet::new())
    }

    fn make(now: &Layout, what: &str) -> Layout {
        steps(now, what, &[]).unwrap().change.unwrap()
    }

    #[test]
    fn nodes_that_join_are_admitted_first_and_hold_nothing_before_they_are() {
        let now = first_layout((1..=3).map(member).collect(), 3);
        let what = "--nodes node-2,node-3,node-4 --join a:1 --zone node-4=z --weight node-2=2";
        let steps = steps(&now, what, &[member(4)]).unwrap();
        let (admission, change) = (steps.admission.as_ref().unwrap(), steps.change.as_ref().unwrap());
        assert_eq!(steps.admitted(&now), "node-4");
        assert_eq!(
            (check_step(&now, admission), check_step(admission, change)),
            (Ok(Step::Same), Ok(Step::Begin))
        );
        let holders = |layout: &Layout| -> Vec<usize> {
            (1..=4).map(|n| layout.ring().owned(member(n).node)).collect()
        };
        assert_eq!((holders(admission), holders(change)), (vec![16, 16, 16, 0], vec![0, 16, 16, 16]));
        let new = |n| change.member(member(n).node).unwrap();
        assert_eq!((new(4).zone.as_str(), new(4).weight, new(2).weight, new(3).weight), ("z", 1, 2, 1));
        assert_eq!(change.members.len(), 4, "who is not named stays a member");
    }

    #[test]
    fn a_member_that_was_to_go_is_admitted_anew() {
        let first = first_layout((1..=4).map(member).collect(), 3);
        let left = make(&make(&first, "--nodes node-1,node-2,node-3"), "--finish");
        let closed = left.next(&Change::Admit(vec![Member { weight: 0, ..member(4) }])).unwrap();
        let steps = steps(&closed, "--nodes node-2,node-3,node-4", &[]).unwrap();
        assert_eq!(steps.admitted(&closed), "node-4");
        assert!(steps.change.unwrap().owned(member(4).node) > 0);
    }

    #[test]
    fn each_change_follows_from_what_is_in_force() {
        let first = first_layout((1..=4).map(member).collect(), 3);
        let moving = make(&first, "--nodes node-1,node-2,node-3");
        assert!(moving.is_joint());
        assert_eq!(make(&moving, "--abort").ring(), first.ring());
        let ended = make(&moving, "--finish");
        assert_eq!((ended.ring(), ended.epoch), (moving.ring(), Epoch(3)));
        let dismissed = make(&ended, &format!("--dismiss {}", member(4).node));
        assert_eq!(dismissed.members.len(), 3);
        let lost = make(&first, "--lost node-4,node-3");
        assert!(lost.is_lost(member(4).node) && lost.is_lost(member(3).node));
        assert_eq!(make(&first, "--create-keyspace carts=siblings").keyspaces.len(), 2);
    }

    #[test]
    fn what_is_so_already_is_no_step() {
        let now = first_layout((1..=3).map(member).collect(), 3);
        for what in ["--nodes node-3,node-1,node-2", "--create-keyspace default=lww"] {
            let steps = steps(&now, what, &[]).unwrap();
            assert!(steps.last().is_none(), "{what}: {steps:?}");
        }
    }

    #[test]
    fn whoever_is_away_does_not_vote_if_others_can() {
        let now = first_layout((1..=4).map(member).collect(), 3);
        let away = now.voters[0];
        let what = wanted("--create-keyspace carts=lww");
        let steps = Steps::plan(&now, &what, &[], &[away].into()).unwrap();
        assert!(now.is_voter(away) && !steps.last().unwrap().is_voter(away));
    }

    #[test]
    fn what_cannot_follow_is_told_with_names() {
        let now = first_layout((1..=4).map(member).collect(), 3);
        let twin = Member { name: "node-1".to_owned(), ..member(5) };
        let twins = first_layout(vec![member(1), member(2), twin.clone()], 2);
        let moving = make(&now, "--nodes node-1,node-2,node-3");
        let lost = make(&now, "--lost node-4");
        let carts = make(&now, "--create-keyspace carts=lww");
        let cases: [(&Layout, &str, &[Member], &str, &str); 14] = [
            (&now, "--nodes node-1,node-9", &[], "NODE_UNKNOWN", "no node is called node-9"),
            (&twins, "--lost node-1", &[], "NODE_AMBIGUOUS", &twin.node.to_string()),
            (&now, "--nodes node-1,node-2,node-3 --join a:1", &[member(5)], "USAGE", "node-5"),
            (&now, "--nodes node-1,node-2,node-1", &[], "USAGE", "node-1 is named twice"),
            (&now, "--nodes node-1,node-2,node-3 --zone node-4=a", &[], "USAGE", "node-4"),
            (&now, "--nodes node-1,node-2", &[], "LAYOUT_REFUSED", "replication factor"),
            (&lost, "--nodes node-1,node-2,node-4", &[], "NODE_LOST", "node-4 is lost"),
            (&now, "--finish", &[], "LAYOUT_REFUSED", "no data is moving"),
            (&now, "--abort", &[], "LAYOUT_REFUSED", "no data is moving"),
            (&moving, "--nodes node-1,node-2,node-4", &[], "LAYOUT_REFUSED", "--finish --wait"),
            (
                &moving,
                "--nodes node-1,node-2,node-5 --join a:1",
                &[member(5)],
                "LAYOUT_REFUSED",
                "moving already",
            ),
            (&now, "--dismiss node-4", &[], "LAYOUT_REFUSED", "node-4 holds data"),
            (&carts, "--create-keyspace carts=siblings", &[], "LAYOUT_REFUSED", "carts"),
            (&now, "--create-keyspace A=lww", &[], "USAGE", "lower-case"),
        ];
        for (now, what, joining, reason, part) in cases {
            let failure = steps(now, what, joining).unwrap_err();
            assert_eq!(failure.reason, reason, "{what}: {}", failure.message);
            assert!(failure.message.contains(part), "{what}: {}", failure.message);
        }
    }
}
