"""Why parcels failed and goods came back: tables made from outcomes that are old enough to judge."""
