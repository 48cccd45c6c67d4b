"""Everything that runs unattended: servers, workers, schedule, alerts."""
