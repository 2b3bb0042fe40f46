//! How far an operation is, and what comes next, before it is known who proposes it.

use keystore_core::succession::Change;

use crate::hold::{Hold, HoldReason};

pub(crate) struct Stage {
    pub(crate) phase: &'static str,
    pub(crate) message: String,
    pub(crate) change: Option<Change>,
    pub(crate) hold: Option<Hold>,
}

impl Stage {
    pub(crate) fn waiting(phase: &'static str, message: String) -> Self {
        Self { phase, message, change: None, hold: None }
    }

    pub(crate) fn change(phase: &'static str, message: String, change: Change) -> Self {
        Self { phase, message, change: Some(change), hold: None }
    }

    pub(crate) fn held(phase: &'static str, message: String) -> Self {
        Self::held_for(HoldReason::Unhealthy, phase, message)
    }

    /// Of something too few are left.
    pub(crate) fn short(phase: &'static str, message: String) -> Self {
        Self::held_for(HoldReason::TooFewLeft, phase, message)
    }

    /// The same, with a hold that says less than the operation does.
    pub(crate) fn with_hold(self, message: String) -> Self {
        Self { hold: self.hold.map(|hold| Hold { message, ..hold }), ..self }
    }

    pub(crate) fn held_by(hold: Hold, phase: &'static str) -> Self {
        Self { phase, message: hold.message.clone(), change: None, hold: Some(hold) }
    }

    fn held_for(reason: HoldReason, phase: &'static str, message: String) -> Self {
        Self::held_by(Hold { reason, message }, phase)
    }
}
