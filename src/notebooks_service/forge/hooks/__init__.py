"""What git runs for the forge. The scripts are also modules, so that one rule serves git and API."""
