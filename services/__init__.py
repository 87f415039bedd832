"""The five Lares services and the kit they share."""
