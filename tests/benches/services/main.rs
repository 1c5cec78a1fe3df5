//! What Services cost as there are more of them: the first sync, one changed endpoint, a
//! restart that finds its tables, memory, and a connection of a client.
//!
//! The floor of a sync is the same transactions, encoded before the clock starts: only the
//! kernel's work is in it. A client and a server are joined by the node; both ways to the
//! server, by its address and by a cluster IP, go through the node's conntrack and the same
//! tables, in turns. Each size is measured in a process and in network namespaces of its own.
//! Results are ratios of one run; absolute times belong to the machine.
//!
//! Run by `make bench`, which writes the tables and a picture to `docs/services.md` and
//! `docs/services.svg`; needs root. `cargo test --benches` runs it once at small sizes and
//! writes to the directory of build products.

mod cluster;
mod connections;
mod plot;
mod sync;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::connections::{Connections, Lab};
use crate::sync::Syncs;

/// With this argument and three numbers the program measures one size and prints its figures.
const SIZE: &str = "--size";
/// The sizes of the issue: Services, and endpoints of each.
const SIZES: [(u32, u32); 5] = [(100, 3), (1_000, 3), (10_000, 3), (50_000, 3), (5_000, 50)];
/// So that it goes on working.
const SMALL_SIZES: [(u32, u32); 3] = [(10, 3), (20, 3), (10, 5)];
/// Connections to each target that are timed, and those that each of several clients makes for
/// a rate. All of them fit into conntrack.
const CONNECTIONS: u32 = 2_000;
const FEW_CONNECTIONS: u32 = 100;
/// The picture shows the sizes with so many endpoints.
const PICTURED_ENDPOINTS: u32 = 3;

/// The figures of one size.
#[derive(Serialize, Deserialize)]
struct Row {
    services: u32,
    endpoints: u32,
    syncs: Syncs,
    connections: Connections,
}

fn main() -> Result<()> {
    if !tests::privilege::ready() {
        return Ok(());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, services, endpoints, connections] = &arguments[..]
        && flag == SIZE
    {
        let cluster = Cluster {
            services: services.parse()?,
            endpoints: endpoints.parse()?,
        };
        let row = measure(cluster, connections.parse()?)?;
        println!("{}", serde_json::to_string(&row)?);
        return Ok(());
    }
    // `cargo bench` says so; `cargo test --benches` does not.
    let full = arguments.iter().any(|argument| argument == "--bench");
    let (sizes, connections, folder) = if full {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
        (&SIZES[..], CONNECTIONS, docs)
    } else {
        let build_products = env!("CARGO_TARGET_TMPDIR");
        (&SMALL_SIZES[..], FEW_CONNECTIONS, build_products)
    };
    let folder = Path::new(folder);
    let rows = sizes.iter().map(|size| measure_apart(*size, connections));
    let rows: Vec<Row> = rows.collect::<Result<_>>()?;
    let tables = tables(&rows);
    print!("{tables}");

    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let pictured = rows
        .iter()
        .filter(|row| row.endpoints == PICTURED_ENDPOINTS);
    plot::draw(&folder.join("services.svg"), &pictured.collect::<Vec<_>>())?;
    fs::write(folder.join("services.md"), page(&tables)?)?;
    println!("\nwritten to {}/services.{{md,svg}}", folder.display());
    Ok(())
}

fn measure(cluster: Cluster, connections: u32) -> Result<Row> {
    let lab = Lab::new()?;
    lab.enter_node()?;
    let syncs = sync::measure(cluster)?;
    // What the first owner has left in the kernel serves the client.
    lab.enter_node()?;
    Ok(Row {
        services: cluster.services,
        endpoints: cluster.endpoints,
        connections: lab.connect(cluster.served_address(), connections)?,
        syncs,
    })
}

/// In a process of its own: the memory of one size is not that of the next.
fn measure_apart((services, endpoints): (u32, u32), connections: u32) -> Result<Row> {
    let program = std::env::current_exe().context("the path of this program")?;
    let output = Command::new(program)
        .arg(SIZE)
        .args([services, endpoints, connections].map(|number| number.to_string()))
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{services} x {endpoints}: {} {text}",
        output.status
    );
    serde_json::from_str(&text).with_context(|| format!("{services} x {endpoints}: {text}"))
}

fn tables(rows: &[Row]) -> String {
    let mut text = String::from(
        "| Services | cold sync | its floor | ratio | one endpoint changed | its floor | ratio \
         | element operations | restart | its operations | RSS |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for row in rows {
        let syncs = &row.syncs;
        let _infallible = writeln!(
            text,
            "| {} x {} | {:.1} ms | {:.1} ms | {:.2} | {:.3} ms | {:.3} ms | {:.2} | {} | {:.1} ms \
             | {} | {} MiB |",
            row.services,
            row.endpoints,
            syncs.cold,
            syncs.cold_floor,
            syncs.cold / syncs.cold_floor,
            syncs.changed,
            syncs.changed_floor,
            syncs.changed / syncs.changed_floor,
            syncs.change_operations,
            syncs.restart,
            syncs.restart_operations,
            syncs.rss >> 20,
        );
    }
    text.push_str(
        "\n| Services | connect directly | through a Service | ratio | connections/s directly \
         | through a Service | ratio |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for row in rows {
        let Connections { latency, rate } = row.connections;
        let _infallible = writeln!(
            text,
            "| {} x {} | {:.1} us | {:.1} us | {:.2} | {:.0} | {:.0} | {:.2} |",
            row.services,
            row.endpoints,
            latency.direct,
            latency.through_service,
            latency.through_service / latency.direct,
            rate.direct,
            rate.through_service,
            rate.direct / rate.through_service,
        );
    }
    text
}

/// The tables with what has to be known of them.
fn page(tables: &str) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = available_parallelism()?;
    Ok(format!(
        "# What Services cost\n\n\
         Written by `make bench`: Linux {}, {cores} cores. The floor is the kernel's own time for \
         the same batches, prepared before the clock starts. A restart begins with the objects in \
         memory and the tables of the last run. Both connections go through the node's conntrack \
         and the same tables.\n\n\
         ![times by the number of Services](services.svg)\n\n\
         {tables}",
        kernel.trim()
    ))
}
