//! A storage node: performs what `keystore-core` decides, on real disks and sockets.

pub mod storage;
