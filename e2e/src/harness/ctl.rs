//! keystorectl in a pod of its own, from the node image, under restricted pod security.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{LogParams, PostParams};
use serde_json::json;

use super::ksc::{CLIENT_PORT, NAME};
use super::sandbox::Sandbox;
use super::wait::{Look, until};

const DONE_WITHIN: Duration = Duration::from_secs(60);

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub struct CtlOutput {
    pub exit_code: i32,
    /// Standard output and standard error.
    pub output: String,
}

impl Sandbox {
    /// Runs `keystorectl` against the store's Service.
    pub async fn keystorectl(&self, arguments: &[&str]) -> Result<CtlOutput> {
        let endpoint = format!("{NAME}.{}.svc:{CLIENT_PORT}", self.namespace);
        let command: Vec<_> =
            ["/keystorectl", "--endpoint", &endpoint].iter().chain(arguments).copied().collect();
        let name = format!("keystorectl-{:08x}", rand::random::<u32>());
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "keystorectl",
                    "image": self.node_image().await?,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }],
            },
        }))?;
        let pods = self.api::<Pod>();
        pods.create(&PostParams::default(), &pod).await.context("the pod is refused")?;
        let exit_code =
            until(format!("keystorectl {} has ended", arguments.join(" ")), DONE_WITHIN, || async {
                let pod = pods.get(&name).await?;
                Ok(match pod.status.as_ref().and_then(exit_code) {
                    Some(code) => Look::Done(code),
                    None => Look::NotYet(format!("{:?}", pod.status.and_then(|status| status.phase))),
                })
            })
            .await?;
        let output = pods.logs(&name, &LogParams::default()).await?;
        self.delete::<Pod>(&name).await?;
        Ok(CtlOutput { exit_code, output })
    }

    /// The image that the store's pods run.
    pub async fn node_image(&self) -> Result<String> {
        let pods = self.store_pods().await?;
        let container = pods.first().and_then(|pod| pod.spec.as_ref()?.containers.first());
        container.and_then(|container| container.image.clone()).context("the store has no pods")
    }
}

fn exit_code(status: &PodStatus) -> Option<i32> {
    let container = status.container_statuses.as_ref()?.first()?;
    Some(container.state.as_ref()?.terminated.as_ref()?.exit_code)
}
