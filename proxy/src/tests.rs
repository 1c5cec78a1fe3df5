//! The proxy as a whole: objects in, packets through what comes out.

mod adoption;
mod affinity;
mod conflicts;
mod endpoints;
mod external;
mod harness;
mod lifecycle;
mod pod_sources;
mod properties;
mod scale;
mod status;
mod surroundings;
mod tables;
mod weights;
