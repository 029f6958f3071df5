void vTaskDelay(unsigned);
