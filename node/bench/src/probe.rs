//! A node's HTTP pages, for probes and for metrics: one request to a connection.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A node that does not listen is not ready.
pub(crate) async fn is_ready(http: SocketAddr) -> bool {
    matches!(get(http, "/readyz").await, Ok((200, _)))
}

/// The sum of a metric's series.
pub(crate) async fn metric(http: SocketAddr, name: &str) -> Result<f64> {
    let (status, text) = get(http, "/metrics").await?;
    anyhow::ensure!(status == 200, "no metrics: status {status}");
    metric_sum(&text, name).with_context(|| format!("there is no metric {name}"))
}

async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    status_and_body(&String::from_utf8_lossy(&answer)).context("that is no HTTP")
}

/// Of an answer that is not chunked, as the nodes' are.
fn status_and_body(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split_whitespace().next()?;
    Some((status.parse().ok()?, body.to_owned()))
}

/// `None` if the text has no series of this name.
fn metric_sum(text: &str, name: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let rest = if rest.starts_with('{') { rest.rsplit_once('}')?.1 } else { rest };
        rest.strip_prefix(' ')?.split_whitespace().next()?.parse::<f64>().ok()
    };
    text.lines().filter_map(value).fold(None, |sum, value| Some(sum.unwrap_or_default() + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_status_and_a_body() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 5\r\n\r\nwait\n";
        assert_eq!(status_and_body(answer), Some((503, "wait\n".to_owned())));
        assert_eq!(status_and_body("HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(status_and_body("nonsense\r\n\r\n"), None);
    }

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_mixed_up_with_a_longer_name() {
        let text = "# TYPE hints gauge\nhints 3\nhints{node=\"a b\"} 4.5\nhints_total 100\n";
        assert_eq!(metric_sum(text, "hints"), Some(7.5));
        assert_eq!(metric_sum(text, "hint"), None);
    }
}
