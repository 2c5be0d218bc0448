//! stub
use super::status::Handle;
/// stub
#[derive(Debug, Clone, Copy)]
pub enum Bus {
    /// a
    Auto,
}
/// stub
pub async fn serve(_: Handle, _: &std::path::Path, _: Bus) -> anyhow::Result<()> {
    Ok(())
}
