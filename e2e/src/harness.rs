//! How scenarios reach a Kubernetes: whichever one the kubeconfig names.
//!
//! Waits with deadlines, namespaces that clean up after themselves, the resource as scenarios look at it, ways into
//! the store, faults of machines and networks, and what is printed when something failed. What should be true is the scenarios' to say.

pub mod wait;
pub mod sandbox;
pub mod ksc;
pub mod volumes;
pub mod forward;
pub mod layouts;
pub mod ctl;
pub mod metrics;
pub mod operator;
pub mod versions;
pub mod machines;
pub mod diagnosis;
