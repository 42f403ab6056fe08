"""Tables, figures, the HTML report and what goes to loggers."""
