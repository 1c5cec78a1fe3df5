//! What `make build` leaves in `target/release`.

use std::fs;

use anyhow::{Context as _, Result};
use tests::{programs, require_root};

/// Program header that names a dynamic loader.
const PT_INTERP: u32 = 3;

#[test]
fn plugin_and_agent_need_no_shared_library() -> Result<()> {
    require_root!();
    for path in [programs::plugin(), programs::agent()] {
        let image = fs::read(&path).with_context(|| path.display().to_string())?;
        let types = program_header_types(&image)
            .with_context(|| format!("{} is no 64-bit ELF file", path.display()))?;
        assert!(
            !types.contains(&PT_INTERP),
            "{} asks for a dynamic loader",
            path.display()
        );
    }
    Ok(())
}

/// The types of the program headers of a little-endian 64-bit ELF file: the
/// table's offset is at 32, the size of an entry at 54, their number at 56.
fn program_header_types(image: &[u8]) -> Option<Vec<u32>> {
    if !image.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
    let table = u64::from_le_bytes(image.get(32..40)?.try_into().ok()?);
    let (size, number) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    (0..number)
        .map(|index| {
            let at = usize::try_from(table).ok()? + index * size;
            Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?))
        })
        .collect()
}
