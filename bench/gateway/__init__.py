"""What the appliance costs between a client and the engine, beside a floor that only relays."""
