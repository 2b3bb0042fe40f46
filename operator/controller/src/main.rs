//! The operator of KeyStore clusters: keeps what each `KeyStoreCluster` describes true.
//!
//! The only crate that talks to Kubernetes; every decision is `operator-core`'s. Modules in reading order.

mod cli;
mod metrics;
mod leadership;
mod nodes;
mod kinds;
mod context;
mod observe;
mod apply;
mod report;
mod reconcile;
mod lease;
mod http;
mod run;
#[cfg(test)]
mod tests;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = cli::parse();
    run::run(options).await
}
