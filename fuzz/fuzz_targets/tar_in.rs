//! One byte chooses a filesystem of the fixtures; the rest is a tar stream, which is put into it. Nothing lands.
#![no_main]

use libfuzzer_sys::fuzz_target;
use racker_formats::transaction::Transaction;
use racker_fs::edit::Session;
use racker_fs::filesystem::Time;
use racker_fs::inspect::Inspection;
use racker_fs::path::View;
use racker_fs::tree::put::Put;
use racker_fs::tree::tar_in::tar_in;
use racker_fuzz::Input;
use racker_fuzz::base::Kind;

fuzz_target!(|input: &[u8]| {
    let Some((choice, mut stream)) = input.split_first() else { return };
    // Zero would be a filesystem of the input's own bytes.
    let Some(Input { disk, .. }) = Input::new(Kind::Editable, &[choice % 24 + 1]) else { return };
    let Ok(inspection) = Inspection::of(&disk) else { return };
    let Some(fs) = inspection.volumes.first().and_then(|v| v.filesystem().ok()) else { return };
    let transaction = Transaction::overlay(disk);
    let mut session = Session::new(&inspection, transaction.disk());
    let view = View::single(0, fs);
    let Ok(root) = view.root() else { return };
    let put = Put::new(&mut session, &view, root, Time::default());
    let _ = tar_in(&mut stream, put, &(), None);
    let _ = session.close();
});
