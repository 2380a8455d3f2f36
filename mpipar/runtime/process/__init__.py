"""What the runtime takes from its process and sets there: settings, signals, exits."""
