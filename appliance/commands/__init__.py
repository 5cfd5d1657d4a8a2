"""The sub-commands of `appliance`, a module each; a module's `command` is loaded only when it is called."""
