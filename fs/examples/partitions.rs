//! `partitions FILE`: the partition table of a raw disk, one line a partition, to compare with other tools.

#![allow(missing_docs)]

use std::fs::File;

use racker_formats::block::{Disk, FileDevice};

fn main() {
    for path in std::env::args().skip(1) {
        let file = File::open(&path).expect("the file opens");
        let disk = Disk::new(FileDevice::new(file, false).expect("a regular file"));
        match racker_fs::partition::read(&disk) {
            Err(e) => println!("{path}: {e}"),
            Ok(table) => {
                println!("{path}: {} {} {}", table.scheme, table.sector_size, table.id.unwrap_or_default());
                for p in table.partitions {
                    println!(
                        "{} {} {} {} {} {:?} {} {:#x} {} {}",
                        p.number,
                        p.span.start(),
                        p.span.len(),
                        p.type_id,
                        p.id.unwrap_or_default(),
                        p.label.unwrap_or_default(),
                        if p.bootable { "boot" } else { "-" },
                        p.attributes,
                        if p.container { "container" } else { "-" },
                        p.type_name.unwrap_or("-"),
                    );
                }
                for w in table.warnings {
                    println!("warning: {w}");
                }
            }
        }
    }
}
