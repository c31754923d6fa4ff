//! The NBD server over any `Disk`: nothing is in it yet.
