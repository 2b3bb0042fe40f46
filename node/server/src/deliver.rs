//! The task that delivers what the core thread has to say: verdicts and frames to links, answers to requests.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::outbox::Outbox;
use crate::peers::Links;

/// Ends when the core thread has.
pub async fn deliver(mut outboxes: mpsc::Receiver<Outbox>, links: Arc<Links>) {
    while let Some(outbox) = outboxes.recv().await {
        let Outbox { answers, verdicts, frames, closings, .. } = outbox;
        for (link, verdict) in verdicts {
            links.decide(link, verdict);
        }
        for frame in frames {
            links.send(frame);
        }
        for link in closings {
            links.close(link);
        }
        for (waiting, told) in answers {
            // A caller that has gone away needs no answer.
            let _ = waiting.send(told);
        }
    }
}
