//! What is looked for among the effects of a step.

use keystore_core::effect::{Answer, Commit, Effect, LoadId};
use keystore_core::message::{Call, Message, Noted, Refusal, WriteOutcome};

/// The answers to writes among some effects.
pub(crate) fn answers(effects: &[Effect]) -> Vec<(Call, WriteOutcome)> {
    let answer = |effect: &Effect| match effect {
        Effect::Send { message: Message::WriteAnswer { call, outcome, .. }, .. } => Some((*call, *outcome)),
        _ => None,
    };
    effects.iter().filter_map(answer).collect()
}

pub(crate) fn commits(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Commit(_))).count()
}

pub(crate) fn load_in(effects: &[Effect]) -> LoadId {
    let load = effects.iter().find_map(|effect| match effect {
        Effect::Load { load, .. } | Effect::Scan { load, .. } => Some(*load),
        _ => None,
    });
    load.unwrap_or_else(|| panic!("nothing is loaded: {effects:?}"))
}

pub(crate) fn commit_in(effects: &[Effect]) -> Option<&Commit> {
    effects.iter().find_map(|effect| if let Effect::Commit(commit) = effect { Some(commit) } else { None })
}

pub(crate) fn messages(effects: &[Effect]) -> Vec<&Message> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send { message, .. } => Some(message),
        _ => None,
    });
    sent.collect()
}

/// Why a replica does not do what it was asked.
pub(crate) fn refusals(effects: &[Effect]) -> Vec<Refusal> {
    messages(effects).into_iter().filter_map(Message::refusal).collect()
}

/// What the answers of a replica say that it has noted of the others.
pub(crate) fn noted_in(effects: &[Effect]) -> Vec<Noted> {
    let noted = |message: &Message| match message {
        Message::WriteAnswer { noted, .. }
        | Message::MintAnswer { noted, .. }
        | Message::ReadAnswer { noted, .. }
        | Message::ScanAnswer { noted, .. } => Some(noted.clone()),
        _ => None,
    };
    messages(effects).into_iter().filter_map(noted).collect()
}

pub(crate) fn answer_in(effects: &[Effect]) -> Option<&Answer> {
    effects
        .iter()
        .find_map(|effect| if let Effect::Answer { answer, .. } = effect { Some(answer) } else { None })
}
